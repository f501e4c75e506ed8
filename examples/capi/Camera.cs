// The same loop in C#: `mcs Camera.cs && mono Camera.exe BUNDLE ONNXRUNTIME < frames`, libedgead.so on the library path.
using System;
using System.IO;
using System.Runtime.InteropServices;
using System.Text;

static class Camera {
    [StructLayout(LayoutKind.Sequential)]
    struct Options {
        public uint StructSize; public int Threads, NoNativeCode, Reserved;
        public IntPtr Precision, Backend, LibraryPath, Trust;
    }

    [StructLayout(LayoutKind.Sequential)]
    struct Frame {
        public uint StructSize; public int Layout; public IntPtr Data, Chroma;
        public int Width, Height; public long Stride, ChromaStride; public int Colors, Reserved;
    }

    const string Library = "libedgead.so.1";
    [DllImport(Library)] static extern int edgead_open(byte[] path, ref Options options, out ulong inspector);
    [DllImport(Library)] static extern int edgead_inspect(ulong inspector, ref Frame frame, out ulong result);
    [DllImport(Library)] static extern int edgead_result_decision(ulong result, out int decision);
    [DllImport(Library)] static extern int edgead_result_score(ulong result, out double score);
    [DllImport(Library)] static extern int edgead_result_close(ulong result);
    [DllImport(Library)] static extern int edgead_close(ulong inspector);
    [DllImport(Library)] static extern IntPtr edgead_last_error();
    [DllImport(Library)] static extern IntPtr edgead_status_name(int status);

    static string Text(IntPtr utf8) {
        var bytes = new MemoryStream();
        for (int i = 0; Marshal.ReadByte(utf8, i) != 0; i++) bytes.WriteByte(Marshal.ReadByte(utf8, i));
        return Encoding.UTF8.GetString(bytes.ToArray());
    }
    static byte[] Utf8(string text) { return Encoding.UTF8.GetBytes(text + "\0"); }
    static void Require(int status) {
        if (status == 0) return;
        Console.Error.WriteLine(Text(edgead_status_name(status)) + ": " + Text(edgead_last_error()));
        Environment.Exit(2);
    }
    static string Line(Stream stream) {
        var line = new StringBuilder();
        for (int c = stream.ReadByte(); c >= 0 && c != '\n'; c = stream.ReadByte()) line.Append((char)c);
        return line.ToString();
    }
    static GCHandle Pin(object held) { return GCHandle.Alloc(held, GCHandleType.Pinned); }

    static void Main(string[] arguments) {
        var runtime = Pin(Utf8(arguments.Length > 1 ? arguments[1] : "libonnxruntime.so.1"));
        var precision = Pin(Utf8(arguments.Length > 2 ? arguments[2] : "fp32"));
        var options = new Options { StructSize = (uint)Marshal.SizeOf(typeof(Options)) };
        options.LibraryPath = runtime.AddrOfPinnedObject();
        options.Precision = precision.AddrOfPinnedObject();
        ulong inspector, result;
        Require(edgead_open(Utf8(arguments[0]), ref options, out inspector));
        var stream = new BufferedStream(Console.OpenStandardInput(), 1 << 20);
        for (var size = Line(stream).Split(' '); size.Length == 2; size = Line(stream).Split(' ')) {
            var frame = new Frame { StructSize = (uint)Marshal.SizeOf(typeof(Frame)), Layout = 1 };
            frame.Width = int.Parse(size[0]);
            frame.Height = int.Parse(size[1]);
            frame.Stride = 3L * frame.Width;
            var pixels = new byte[frame.Stride * frame.Height];
            for (int at = 0, got = 1; at < pixels.Length && got > 0; at += got) got = stream.Read(pixels, at, pixels.Length - at);
            var held = Pin(pixels);
            frame.Data = held.AddrOfPinnedObject();
            Require(edgead_inspect(inspector, ref frame, out result));
            held.Free();
            int decision;
            double score;
            Require(edgead_result_decision(result, out decision));
            Require(edgead_result_score(result, out score));
            var name = new[] { "OK", "ANOMALY", "NOT_INSPECTED" }[decision];  // only OK may pass
            Console.WriteLine(name + " " + BitConverter.DoubleToInt64Bits(score).ToString("x16"));
            Require(edgead_result_close(result));
        }
        Require(edgead_close(inspector));
    }
}
