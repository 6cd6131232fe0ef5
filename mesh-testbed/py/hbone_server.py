"""An HBONE server: grants CONNECT requests and leads them to their authority, and tells of each
request it saw as a line of JSON when a line is read."""
import json
import socket
import ssl
import sys
import threading

import h2.config
import h2.connection
import h2.errors
import h2.events
from hyperframe.frame import GoAwayFrame

SPEC = json.loads(sys.argv[1])
SEEN = []
TUNNELS = []


class Tunnel:
    def __init__(self, connection):
        self.socket = connection
        self.lock = threading.RLock()
        self.room = threading.Condition(self.lock)
        self.streams = {}
        self.peer = connection.getpeercert()
        config = h2.config.H2Configuration(client_side=False, header_encoding="utf-8",
                                           # It asks for :path, which CONNECT does not have.
                                           validate_inbound_headers=False)
        self.h2 = h2.connection.H2Connection(config=config)

    def flush(self):
        data = self.h2.data_to_send()
        if data:
            self.socket.sendall(data)

    def run(self):
        with self.lock:
            self.h2.initiate_connection()
            self.flush()
        while True:
            try:
                data = self.socket.recv(65536)
            except OSError:
                data = b""
            if not data:
                break
            with self.lock:
                for event in self.h2.receive_data(data):
                    self.see(event)
                self.flush()
                self.room.notify_all()
        for application in self.streams.values():
            application.close()

    def see(self, event):
        if isinstance(event, h2.events.RequestReceived):
            headers = dict(event.headers)
            uris = [value for kind, value in self.peer["subjectAltName"] if kind == "URI"]
            SEEN.append({"headers": headers, "uris": uris, "version": self.socket.version(),
                         "alpn": self.socket.selected_alpn_protocol()})
            self.request(event.stream_id, headers)
        elif isinstance(event, h2.events.DataReceived):
            application = self.streams.get(event.stream_id)
            if application:
                try:
                    application.sendall(event.data)
                except OSError:
                    self.h2.reset_stream(event.stream_id, h2.errors.ErrorCodes.CONNECT_ERROR)
            self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamEnded):
            application = self.streams.get(event.stream_id)
            if application:
                application.shutdown(socket.SHUT_WR)
        elif isinstance(event, h2.events.StreamReset):
            SEEN.append({"reset": int(event.error_code)})
            application = self.streams.pop(event.stream_id, None)
            if application:
                application.close()

    def request(self, stream, headers):
        host, _, port = headers[":authority"].rpartition(":")
        status = SPEC.get("answers", {}).get(port, 200)
        if status != 200 or headers[":method"] != "CONNECT":
            self.h2.send_headers(stream, [(":status", str(status))], end_stream=True)
            return
        application = socket.create_connection((host.strip("[]"), int(port)), timeout=10)
        application.settimeout(None)
        self.streams[stream] = application
        self.h2.send_headers(stream, [(":status", "200")])
        threading.Thread(target=self.answer, args=(stream, application), daemon=True).start()

    def answer(self, stream, application):
        while True:
            try:
                data = application.recv(65536)
            except OSError:
                return
            with self.lock:
                if not data:
                    self.h2.end_stream(stream)
                    self.flush()
                    return
                while data:
                    while self.h2.local_flow_control_window(stream) <= 0:
                        self.room.wait()
                    size = min(len(data), self.h2.local_flow_control_window(stream),
                               self.h2.max_outbound_frame_size)
                    self.h2.send_data(stream, data[:size])
                    data = data[size:]
                    self.flush()


def accept(listener, context):
    while True:
        raw, _ = listener.accept()
        try:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = context.wrap_socket(raw, server_side=True)
        except OSError as error:
            SEEN.append({"refused": str(error)})
            continue
        tunnel = Tunnel(connection)
        TUNNELS.append(tunnel)
        threading.Thread(target=tunnel.run, daemon=True).start()


context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.minimum_version = ssl.TLSVersion.TLSv1_3
context.load_cert_chain(SPEC["cert"], SPEC["key"])
context.load_verify_locations(SPEC["ca"])
context.verify_mode = ssl.CERT_REQUIRED
context.set_alpn_protocols(["h2"])
listener = socket.create_server(("", 15008), reuse_port=False)
threading.Thread(target=accept, args=(listener, context), daemon=True).start()
print(json.dumps({"listening": "0.0.0.0:15008"}), flush=True)
for line in sys.stdin:
    order = json.loads(line)
    if order.get("goaway"):
        for tunnel in TUNNELS:
            # Not by the library, for which it is the end of all streams.
            last = tunnel.h2.highest_inbound_stream_id
            with tunnel.lock:
                tunnel.socket.sendall(GoAwayFrame(0, last_stream_id=last).serialize())
    print(json.dumps({"seen": SEEN, "tunnels": len(TUNNELS)}), flush=True)
