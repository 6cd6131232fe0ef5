"""An HBONE client: one tunnel, steps of which are read as lines of JSON, each answered by one."""
import json
import socket
import ssl
import sys

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings

SPEC = json.loads(sys.argv[1])
PATIENCE = 20


class Connection(h2.connection.H2Connection):
    def _receive_goaway_frame(self, frame):
        """Streams go on after it, which the library does not know."""
        event = h2.events.ConnectionTerminated()
        event.error_code = frame.error_code
        return [], [event]


class Tunnel:
    def __init__(self):
        host, port = SPEC["to"]
        raw = socket.create_connection((host, port), timeout=PATIENCE)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if SPEC.get("plain"):
            self.socket = raw
        else:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.load_verify_locations(SPEC["ca"])
            if SPEC.get("cert"):
                context.load_cert_chain(SPEC["cert"], SPEC["key"])
            if SPEC.get("most"):
                context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
                context.maximum_version = ssl.TLSVersion[SPEC["most"]]
                context.set_ciphers("ALL:@SECLEVEL=0")
            if SPEC.get("alpn", ["h2"]):
                context.set_alpn_protocols(SPEC.get("alpn", ["h2"]))
            self.socket = context.wrap_socket(raw)
        config = h2.config.H2Configuration(client_side=True, header_encoding="utf-8",
                                           validate_outbound_headers=False,
                                           normalize_outbound_headers=False)
        self.h2 = Connection(config=config)
        self.h2.initiate_connection()
        self.h2.update_settings({h2.settings.SettingCodes.ENABLE_PUSH: 0})
        self.streams = {}
        self.pongs = 0
        self.goaway = None
        self.closed = False
        self.flush()

    def flush(self):
        data = self.h2.data_to_send()
        if data:
            self.socket.sendall(data)

    def pump(self, done):
        """Reads until `done`, or the tunnel is closed."""
        while not done() and not self.closed:
            self.socket.settimeout(PATIENCE)
            data = self.socket.recv(65536)
            if not data:
                self.closed = True
                return
            for event in self.h2.receive_data(data):
                self.see(event)
            self.flush()

    def see(self, event):
        stream = self.streams.get(getattr(event, "stream_id", None))
        if isinstance(event, h2.events.ResponseReceived):
            stream["status"] = int(dict(event.headers)[":status"])
        elif isinstance(event, h2.events.DataReceived):
            stream["received"] += event.data
            self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamEnded):
            stream["ended"] = True
        elif isinstance(event, h2.events.StreamReset) and stream:
            stream["reset"] = int(event.error_code)
        elif isinstance(event, h2.events.PingAckReceived):
            self.pongs += 1
        elif isinstance(event, h2.events.ConnectionTerminated):
            self.goaway = int(event.error_code)

    def connect(self, step):
        id = self.h2.get_next_available_stream_id()
        stream = {"id": id, "received": b"", "status": None, "ended": False, "reset": None}
        self.streams[id] = self.streams[step["connect"]] = stream
        headers = [(":method", step.get("method", "CONNECT")), (":authority", step["authority"])]
        headers += [tuple(pair) for pair in step.get("headers", [])]
        self.h2.send_headers(id, headers)
        self.flush()
        self.pump(lambda: stream["status"] is not None or stream["reset"] is not None)
        return self.told(stream)

    def send(self, step):
        stream = self.streams[step["send"]]
        data = step.get("text", "").encode() * step.get("times", 1)
        frame = step.get("frame", 16384)
        while data:
            self.pump(lambda: stream["reset"] is not None
                      or self.h2.local_flow_control_window(stream["id"]) > 0)
            if self.closed or stream["reset"] is not None:
                break
            size = min(frame, self.h2.local_flow_control_window(stream["id"]))
            self.h2.send_data(stream["id"], data[:size])
            data = data[size:]
            if frame >= 1024 or len(data) % 8192 < frame:
                self.flush()
        if step.get("end"):
            self.h2.end_stream(stream["id"])
        self.flush()
        return self.told(stream)

    def receive(self, step):
        stream = self.streams[step["receive"]]
        wanted = step.get("bytes")
        over = lambda: stream["ended"] or stream["reset"] is not None
        self.pump(lambda: over() or (wanted is not None and len(stream["received"]) >= wanted))
        return self.told(stream)

    def told(self, stream):
        received = stream["received"]
        return {"status": stream["status"], "length": len(received),
                "text": received[:65536].decode("latin-1"), "ended": stream["ended"],
                "reset": stream["reset"], "closed": self.closed, "goaway": self.goaway}

    def step(self, step):
        if "connect" in step:
            return self.connect(step)
        if "send" in step:
            return self.send(step)
        if "receive" in step:
            return self.receive(step)
        if "reset" in step:
            self.h2.reset_stream(self.streams[step["reset"]]["id"], step.get("code", 8))
            self.flush()
            return {}
        if "ping" in step:
            before = self.pongs
            self.h2.ping(b"12345678")
            self.flush()
            self.pump(lambda: self.pongs > before)
            return {"pong": self.pongs > before}
        if "goaway" in step:
            self.pump(lambda: self.goaway is not None)
            return {"goaway": self.goaway, "closed": self.closed}
        if "raw" in step:
            for _ in range(step.get("times", 1)):
                self.socket.sendall(bytes.fromhex(step["raw"]))
            return {}
        if "resets" in step:
            for _ in range(step["resets"]):
                id = self.h2.get_next_available_stream_id()
                self.h2.send_headers(id, [(":method", "CONNECT"), (":authority", step["authority"])])
                self.h2.reset_stream(id)
                if id % 100 == 1:
                    self.flush()
            self.flush()
            return {}
        self.pump(lambda: False)
        return {"closed": self.closed, "goaway": self.goaway}


def say(value):
    print(json.dumps(value), flush=True)


def why(error):
    return {"error": f"{type(error).__name__}: {error}"}


try:
    tunnel = Tunnel()
    # With TLS 1.3 a client learns that its certificate was refused when it reads.
    if not SPEC.get("blind"):
        tunnel.pump(lambda: tunnel.h2.remote_settings.max_concurrent_streams < 1000)
    say({"ready": not tunnel.closed, "closed": tunnel.closed})
except Exception as error:
    say(why(error))
    sys.exit(0)
for line in sys.stdin:
    try:
        say(tunnel.step(json.loads(line)))
    except (OSError, h2.exceptions.H2Error) as error:
        tunnel.closed = True
        say(why(error))
