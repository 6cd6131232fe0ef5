"""Makes a call of every kind and prints what came of it, as one line of JSON."""
import json
import sys
import threading

import grpc

channel = grpc.insecure_channel(sys.argv[1], options=[("grpc.max_receive_message_length", 8 << 20)])


def method(kind, name):
    return getattr(channel, kind)(f"/mesh.Test/{name}")


def failed(call):
    try:
        result = call()
        list(result) if hasattr(result, "__next__") else result
        return None
    except grpc.RpcError as error:
        return {"code": error.code().name, "details": error.details(),
                "trailers": {k: v for k, v in error.trailing_metadata() or () if isinstance(v, str)}}


told = {}
unary = method("unary_unary", "Unary")
answer, call = unary.with_call(b"abc", timeout=10)
told["unary"] = answer.decode()
told["initial"] = dict(call.initial_metadata()).get("x-initial")
trailing = dict(call.trailing_metadata())
told["trailing"] = [trailing.get("x-trailing"), trailing.get("x-bytes-bin", b"").hex()]
big = bytes(range(256)) * 4096
told["big"] = unary(big, timeout=10) == big[::-1]
told["count"] = len(list(method("unary_stream", "Count")(b"1000", timeout=10)))
told["collect"] = len(method("stream_unary", "Collect")((b"x" * 1000 for _ in range(500)), timeout=10))

# Both directions at once: a message is sent only after the answer to the one before.
turn = threading.Semaphore(1)


def messages():
    for i in range(200):
        turn.acquire()
        yield str(i).encode()


answers = []
for answer in method("stream_stream", "Echo")(messages(), timeout=10):
    answers.append(int(answer))
    turn.release()
told["echo"] = answers == list(range(200))
told["fail"] = failed(lambda: method("unary_unary", "Fail")(b"", timeout=10))
stream = method("unary_stream", "BreakOff")(b"", timeout=10)
told["before_break"] = next(stream).decode()
told["break_off"] = failed(lambda: stream)
told["slow"] = failed(lambda: method("unary_unary", "Slow")(b"", timeout=0.3))
told["unknown"] = failed(lambda: method("unary_unary", "Unknown")(b"", timeout=10))
told["metadata"] = json.loads(method("unary_unary", "Metadata")(b"", timeout=10, metadata=(("x-mine", "m"),)))
print(json.dumps(told), flush=True)
