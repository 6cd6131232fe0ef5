"""A secret discovery server as SPIRE's agent is one: gRPC on a Unix socket, a stream for whoever
asks, updates pushed, names that are not registered refused. Messages are written by hand.

A line on stdin replaces what it serves ({"name": {"version", "chain", "key" | "roots" | "domains"}});
the answer on stdout is everything it was asked so far."""
import json
import os
import sys
import threading
from concurrent import futures

import grpc

SECRET = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
SPIFFE = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig"

state = {}
log = []
changed = threading.Condition()


def varint(number):
    out = b""
    while True:
        low, number = number & 0x7F, number >> 7
        if not number:
            return out + bytes([low])
        out += bytes([low | 0x80])


def field(number, value):
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def inline(text):
    return field(2, text)


def any_of(url, value):
    return field(1, url) + field(2, value)


def secret(name, what):
    if "chain" in what:
        pair = field(1, inline(what["chain"])) + field(2, inline(what["key"]))
        return field(1, name) + field(2, pair)
    if "domains" in what:
        domains = b"".join(
            field(1, field(1, domain) + field(2, inline(pem))) for domain, pem in what["domains"].items())
        custom = field(1, "envoy.tls.cert_validator.spiffe") + field(2, any_of(SPIFFE, domains))
        return field(1, name) + field(4, field(12, custom))
    return field(1, name) + field(4, field(1, inline(what["roots"])))


def parse(data):
    """Fields with a length, by number."""
    fields, at = {}, 0

    def number():
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        key = number()
        if key & 7 == 0:
            number()
        elif key & 7 == 2:
            size = number()
            fields.setdefault(key >> 3, []).append(data[at:at + size])
            at += size
        else:
            raise ValueError(f"wire type {key & 7}")
    return fields


def stream(requests, context):
    names, sent, open_ = [], {}, [True]

    def read():
        try:
            for raw in requests:
                request = parse(raw)
                text = lambda number: request.get(number, [b""])[0].decode()
                error = parse(request[6][0]).get(2, [b""])[0].decode() if 6 in request else None
                with changed:
                    names[:] = [name.decode() for name in request.get(3, [])]
                    log.append({"names": list(names), "version": text(1), "nonce": text(5),
                                "node": 2 in request, "error": error})
                    changed.notify_all()
        except Exception:
            pass
        with changed:
            open_[0] = False
            changed.notify_all()

    threading.Thread(target=read, daemon=True).start()
    nonce = 0
    while True:
        with changed:
            while True:
                if not open_[0] or not context.is_active():
                    return
                unknown = [name for name in names if name not in state]
                if unknown:
                    break
                fresh = [name for name in names if sent.get(name) != state[name]]
                if fresh:
                    break
                changed.wait(0.2)
            if unknown:
                context.abort(grpc.StatusCode.PERMISSION_DENIED,
                              f"workload is not authorized for the requested identities {unknown}")
            nonce += 1
            sent.update({name: state[name] for name in fresh})
            version = state[fresh[0]]["version"]
            resources = b"".join(field(2, any_of(SECRET, secret(name, state[name]))) for name in fresh)
        yield field(1, version) + resources + field(4, SECRET) + field(5, str(nonce))


handlers = grpc.method_handlers_generic_handler("envoy.service.secret.v3.SecretDiscoveryService", {
    "StreamSecrets": grpc.stream_stream_rpc_method_handler(stream),
})
path = sys.argv[1]
server = grpc.server(futures.ThreadPoolExecutor(32))
server.add_generic_rpc_handlers((handlers,))
server.add_insecure_port(f"unix:{path}")
server.start()
print(json.dumps({"listening": path}), flush=True)
for line in sys.stdin:
    with changed:
        state = json.loads(line)
        changed.notify_all()
        answer = json.dumps(log)
    print(answer, flush=True)
os._exit(0)
