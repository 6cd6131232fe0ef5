"""A gRPC server with a call of every kind. Messages are plain bytes."""
import json
import time
from concurrent import futures

import grpc


def unary(request, context):
    context.set_trailing_metadata((("x-trailing", "t"), ("x-bytes-bin", b"\x00\xff")))
    context.send_initial_metadata((("x-initial", "i"),))
    return request[::-1]


def count(request, context):
    for i in range(int(request)):
        yield str(i).encode()


def collect(requests, context):
    return b"".join(requests)


def echo(requests, context):
    for request in requests:
        yield request


def fail(request, context):
    context.set_trailing_metadata((("x-why", "because"),))
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not now: 100% \u00fc")


def break_off(request, context):
    yield b"one"
    context.abort(grpc.StatusCode.DATA_LOSS, "half way")


def slow(request, context):
    while context.is_active():
        time.sleep(0.02)
    return b"late"


def metadata(request, context):
    return json.dumps({k: v for k, v in context.invocation_metadata() if isinstance(v, str)}).encode()


handlers = grpc.method_handlers_generic_handler("mesh.Test", {
    "Unary": grpc.unary_unary_rpc_method_handler(unary),
    "Count": grpc.unary_stream_rpc_method_handler(count),
    "Collect": grpc.stream_unary_rpc_method_handler(collect),
    "Echo": grpc.stream_stream_rpc_method_handler(echo),
    "Fail": grpc.unary_unary_rpc_method_handler(fail),
    "BreakOff": grpc.unary_stream_rpc_method_handler(break_off),
    "Slow": grpc.unary_unary_rpc_method_handler(slow),
    "Metadata": grpc.unary_unary_rpc_method_handler(metadata),
})
server = grpc.server(futures.ThreadPoolExecutor(8), options=[("grpc.max_receive_message_length", 8 << 20)])
server.add_generic_rpc_handlers((handlers,))
port = server.add_insecure_port("0.0.0.0:0")
server.start()
print(json.dumps({"listening": f"0.0.0.0:{port}"}), flush=True)
server.wait_for_termination()
