"""A real RTSP camera on loopback, run by the system's Python: ``python3 rtsp_server.py PORT SECONDS [WxH] [FPS]``.

Each picture carries its number as 16 black or white columns in its upper half, so that a test can tell which one it
sees. The server ends by itself after SECONDS.
"""

import os
import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402

BITS = 16


class Camera(GstRtspServer.RTSPMediaFactory):
    """One pipeline for all clients, live: it makes pictures in real time whether or not they are fetched."""

    def __init__(self, width, height, fps):
        super().__init__()
        self.width, self.height, self.fps, self.number = width, height, fps, 0
        self.set_shared(True)
        self.set_launch(
            "( appsrc name=pictures is-live=true do-timestamp=true format=time max-bytes=0 leaky-type=downstream "
            f"caps=video/x-raw,format=GRAY8,width={width},height={height},framerate={fps}/1 "
            "! videoconvert ! video/x-raw,format=I420 "
            f"! x264enc tune=zerolatency speed-preset=ultrafast key-int-max={fps} bitrate=2000 threads=1 "
            "! rtph264pay name=pay0 pt=96 config-interval=-1 )"
        )

    def begin(self, media):
        source = media.get_element().get_by_name_recurse_up("pictures")
        GLib.timeout_add(1000 // self.fps, self.push, source)

    def push(self, source):
        column = self.width // BITS
        row = b"".join((b"\xf0" if self.number >> bit & 1 else b"\x10") * column for bit in range(BITS))
        row += b"\x10" * (self.width - len(row))
        self.number += 1
        upper = self.height // 2
        # Noise, so that there is something to send.
        noise = os.urandom(self.width * (self.height - upper))
        return source.emit("push-buffer", Gst.Buffer.new_wrapped(row * upper + noise)) == Gst.FlowReturn.OK


def main():
    port, seconds = sys.argv[1], int(sys.argv[2])
    width, height = map(int, sys.argv[3].split("x")) if len(sys.argv) > 3 else (320, 240)
    fps = int(sys.argv[4]) if len(sys.argv) > 4 else 30
    Gst.init(None)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(port)
    factory = Camera(width, height, fps)
    factory.connect("media-configure", lambda _, media: factory.begin(media))
    server.get_mount_points().add_factory("/camera", factory)
    if server.attach(None) == 0:
        sys.exit("the port is taken")
    loop = GLib.MainLoop()
    GLib.timeout_add_seconds(seconds, loop.quit)
    print("ready", flush=True)
    loop.run()


main()
