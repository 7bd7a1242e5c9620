// The steps before and after the graph, without ONNX Runtime: pixels of a camera's buffer, verdict and regions.
using System;
using System.Collections.Generic;
using System.Globalization;
using System.Linq;
using System.Runtime.InteropServices;

namespace Anomaly
{
    /// <summary>Pixel format of a buffer; Mono16 in this machine's byte order.</summary>
    public enum Pixels { Mono8, Mono16, Rgb8, Bgr8 }

    /// <summary>Rule of resizing to the network's input.</summary>
    public enum Resize { Stretch, Letterbox }

    /// <summary>An image in memory. Offset is the position of the top row. Stride is the distance between rows in bytes; it may
    /// exceed the pixels of a row, and it is negative for images stored bottom up.</summary>
    public sealed class ImageBuffer
    {
        public readonly byte[] Data;
        public readonly int Offset, Width, Height, Stride;
        public readonly Pixels Pixels;

        /// <exception cref="ArgumentException">The buffer is invalid.</exception>
        public ImageBuffer(byte[] data, int offset, int width, int height, int stride, Pixels pixels)
        {
            if (width < 1 || height < 1)
                throw new ArgumentException("a buffer of " + width + "x" + height + " pixels holds no image: give pixels and sizes of at least 1");
            long row = RowBytes(width, pixels), last = offset + (long)stride * (height - 1);
            if (Math.Abs((long)stride) < row)
                throw new ArgumentException("a stride of " + stride + " bytes is less than a row of " + width
                    + " pixels: give the distance between rows in bytes");
            if (Math.Min(offset, last) < 0 || Math.Max(offset, last) + row > data.Length)
                throw new ArgumentException("the buffer has " + data.Length + " bytes, fewer than its rows need");
            Data = data;
            Offset = offset;
            Width = width;
            Height = height;
            Stride = stride;
            Pixels = pixels;
        }

        /// <summary>Copies an image of a camera's SDK; <paramref name="top"/> points to the top row.</summary>
        public static ImageBuffer Copy(IntPtr top, int width, int height, int stride, Pixels pixels)
        {
            int above = stride < 0 ? -stride * (height - 1) : 0;
            var data = new byte[Math.Abs(stride) * (height - 1) + (int)RowBytes(width, pixels)];
            Marshal.Copy(IntPtr.Subtract(top, above), data, 0, data.Length);
            return new ImageBuffer(data, above, width, height, stride, pixels);
        }

        private static long RowBytes(int width, Pixels pixels)
        {
            return (long)width * (pixels == Pixels.Mono8 ? 1 : pixels == Pixels.Mono16 ? 2 : 3);
        }
    }

    /// <summary>Metadata of a model file.</summary>
    public sealed class Metadata
    {
        public const int KnownContract = 3;

        public readonly Resize Resize;
        public readonly int White;  // stored value of a 16-bit image that becomes 255
        public readonly double Alpha;  // guarantee: largest share of good parts that is rejected
        public readonly long[] Fixed;  // images, height and width of a fixed graph; empty for any
        public readonly double GoldenScore, GoldenMapMaximum;
        public readonly Dictionary<string, double> GoldenTolerance;  // execution provider -> tolerance

        /// <param name="stored">The model's custom metadata.</param>
        /// <exception cref="FormatException">A foreign file, another contract, a model for large images, or a
        /// sampler.</exception>
        public Metadata(IReadOnlyDictionary<string, string> stored)
        {
            double contract = Json.As<double>(Read(stored, "contract"));
            if (contract != KnownContract)
                throw new FormatException("the file follows contract " + contract + ", this program reads contract "
                    + KnownContract + ": export it again");
            string kind = Json.As<string>(Read(stored, "kind")), resize = Json.As<string>(Read(stored, "resize"));
            if (kind != "detector")
                throw new FormatException("the file is a " + kind + ": use the model.onnx beside it");
            if (Has(stored, "tiling"))
                throw new FormatException("the file is a model for large images: score it with `anomaly score`");
            if (resize != "stretch" && resize != "letterbox")
                throw new FormatException("the resize '" + resize + "' is not supported: export the model again");
            var golden = Json.As<Dictionary<string, object>>(Read(stored, "golden"));
            Resize = resize == "stretch" ? Resize.Stretch : Resize.Letterbox;
            White = (int)Json.As<double>(Read(stored, "white"));
            Alpha = Json.As<double>(Read(stored, "alpha"));
            Fixed = Has(stored, "fixed")
                ? Json.As<List<object>>(Read(stored, "fixed")).Select(length => (long)Json.As<double>(length)).ToArray()
                : new long[0];
            if (Fixed.Length != 0 && Fixed.Length != 3)
                throw new FormatException("'fixed' does not have three sizes: export the model again");
            GoldenScore = Json.As<double>(Member(golden, "score"));
            GoldenMapMaximum = Json.As<double>(Member(golden, "map_maximum"));
            GoldenTolerance = golden.ContainsKey("tolerance")
                ? Json.As<Dictionary<string, object>>(golden["tolerance"])
                    .ToDictionary(pair => pair.Key, pair => Json.As<double>(pair.Value))
                : new Dictionary<string, double>();
        }

        private static bool Has(IReadOnlyDictionary<string, string> stored, string key)
        {
            string value;
            return stored.TryGetValue("anomaly." + key, out value) && value != "null";
        }

        private static object Read(IReadOnlyDictionary<string, string> stored, string key)
        {
            string value;
            if (!stored.TryGetValue("anomaly." + key, out value))
                throw new FormatException("the file has no 'anomaly." + key + "': make it with `anomaly export`");
            return Json.Parse(value);
        }

        private static object Member(Dictionary<string, object> members, string name)
        {
            object value;
            if (!members.TryGetValue(name, out value))
                throw new FormatException("'" + name + "' is missing");
            return value;
        }
    }

    /// <summary>An anomaly map row by row, calibrated: 0 is a typical good part, 1 the threshold.</summary>
    public sealed class Map
    {
        public readonly int Height, Width;
        public readonly float[] Values;

        public Map(int height, int width, float[] values)
        {
            Height = height;
            Width = width;
            Values = values;
        }
    }

    /// <summary>A connected region of the enlarged map, in pixels of the image.</summary>
    public sealed class Region
    {
        public int X, Y, Width, Height;
        public long Area;  // number of pixels
        public float Peak;  // maximum of the map in the region
        public bool Weak;  // no pixel is above the threshold: the region around the map's maximum
    }

    /// <summary>Verdict of one image; regions strongest first.</summary>
    public sealed class Verdict
    {
        public float Score, MapMaximum;
        public double Threshold;
        public bool IsDefect;
        public List<Region> Regions;

        /// <summary>One line of JSON with exact floats.</summary>
        public string ToJson()
        {
            return "{\"score\": " + Exact(Score) + ", \"threshold\": " + Threshold.ToString("R", CultureInfo.InvariantCulture)
                + ", \"verdict\": \"" + (IsDefect ? "defect" : "good") + "\", \"regions\": " + ToJson(Regions)
                + ", \"map_maximum\": " + Exact(MapMaximum) + "}";
        }

        public static string ToJson(IEnumerable<Region> regions)
        {
            return "[" + string.Join(", ", regions.Select(region => "{\"x\": " + region.X + ", \"y\": " + region.Y
                + ", \"width\": " + region.Width + ", \"height\": " + region.Height + ", \"area\": " + region.Area
                + ", \"peak\": " + Exact(region.Peak) + ", \"weak\": " + (region.Weak ? "true" : "false") + "}")) + "]";
        }

        private static string Exact(float value)
        {
            return value.ToString("G9", CultureInfo.InvariantCulture);
        }
    }

    /// <summary>The steps before and after the graph.</summary>
    public static class Contract
    {
        private const double Slack = 1e-6;  // tolerance in map pixels at the end of a letterbox's padding

        /// <summary>Writes height × width × 3 bytes RGB, beginning at <paramref name="at"/>.</summary>
        public static void PackRgb(ImageBuffer buffer, int white, byte[] rgb, int at)
        {
            byte[] data = buffer.Data;
            for (int y = 0; y < buffer.Height; ++y)
            {
                int from = buffer.Offset + y * buffer.Stride;
                for (int x = 0; x < buffer.Width; ++x, at += 3)
                {
                    switch (buffer.Pixels)
                    {
                        case Pixels.Rgb8:
                        case Pixels.Bgr8:
                            int first = buffer.Pixels == Pixels.Rgb8 ? 0 : 2;
                            rgb[at] = data[from + first];
                            rgb[at + 1] = data[from + 1];
                            rgb[at + 2] = data[from + 2 - first];
                            from += 3;
                            break;
                        case Pixels.Mono8:
                            rgb[at] = rgb[at + 1] = rgb[at + 2] = data[from++];
                            break;
                        case Pixels.Mono16:
                            long grey = (2L * 255 * BitConverter.ToUInt16(data, from) + white) / (2L * white);
                            rgb[at] = rgb[at + 1] = rgb[at + 2] = (byte)Math.Min(grey, 255);
                            from += 2;
                            break;
                    }
                }
            }
        }

        private struct Tap
        {
            public int First, Second;
            public float Share;  // weight of the second
        }

        /// <summary>Finds the two neighbours of each pixel among <paramref name="numMapPixels"/> map pixels.</summary>
        private static Tap[] Taps(int numPixels, int numMapPixels, double scale)
        {
            // Only map pixels with their centre on the image count; an image below one map pixel uses the two around it.
            double low = Math.Ceiling((numMapPixels - numPixels * scale) / 2 - 0.5 - Slack);
            double least = Math.Min(low, numMapPixels - 1 - low), most = Math.Max(low, numMapPixels - 1 - low);
            var found = new Tap[numPixels];
            for (int n = 0; n < numPixels; ++n)
            {
                double place = Math.Min(Math.Max((n + 0.5 - numPixels / 2.0) * scale + numMapPixels / 2.0 - 0.5, least), most);
                int first = (int)place;
                int second = Math.Min(first + 1, numMapPixels - 1);
                found[n] = new Tap { First = first, Second = second, Share = (float)(place - first) };
            }
            return found;
        }

        /// <summary>Enlarges a map to the size of its image, bilinear with half-pixel centres. The casts keep single
        /// precision.</summary>
        public static Map Enlarge(Map map, int height, int width, Resize resize)
        {
            if (map.Height == height && map.Width == width)
                return map;
            double scaleY = (double)map.Height / height, scaleX = (double)map.Width / width;
            if (resize == Resize.Letterbox)
                scaleY = scaleX = Math.Min(scaleY, scaleX);
            Tap[] columns = Taps(width, map.Width, scaleX), rows = Taps(height, map.Height, scaleY);
            var wide = new float[map.Height * width];  // each row of the map enlarged along x
            for (int y = 0; y < map.Height; ++y)
                for (int x = 0; x < width; ++x)
                {
                    Tap tap = columns[x];
                    float left = (float)(map.Values[y * map.Width + tap.First] * (float)(1 - tap.Share));
                    float right = (float)(map.Values[y * map.Width + tap.Second] * tap.Share);
                    wide[y * width + x] = (float)(left + right);
                }
            var values = new float[height * width];
            for (int y = 0; y < height; ++y)
            {
                int top = rows[y].First * width, bottom = rows[y].Second * width;
                for (int x = 0; x < width; ++x)
                {
                    float step = (float)((float)(wide[bottom + x] - wide[top + x]) * rows[y].Share);
                    values[y * width + x] = (float)(wide[top + x] + step);
                }
            }
            return new Map(height, width, values);
        }

        /// <summary>Collects the 8-connected region around <paramref name="start"/> and clears it in
        /// <paramref name="inside"/>.</summary>
        private static Region TakeRegion(Map map, bool[] inside, int start, bool weak)
        {
            int left = map.Width, right = -1, top = map.Height, bottom = -1;
            var region = new Region { Peak = map.Values[start], Weak = weak };
            var open = new Stack<int>();
            open.Push(start);
            inside[start] = false;
            while (open.Count > 0)
            {
                int at = open.Pop(), x = at % map.Width, y = at / map.Width;
                left = Math.Min(left, x);
                right = Math.Max(right, x);
                top = Math.Min(top, y);
                bottom = Math.Max(bottom, y);
                region.Peak = Math.Max(region.Peak, map.Values[at]);
                ++region.Area;
                for (int v = Math.Max(0, y - 1); v <= Math.Min(map.Height - 1, y + 1); ++v)
                    for (int u = Math.Max(0, x - 1); u <= Math.Min(map.Width - 1, x + 1); ++u)
                        if (inside[v * map.Width + u])
                        {
                            inside[v * map.Width + u] = false;
                            open.Push(v * map.Width + u);
                        }
            }
            region.X = left;
            region.Y = top;
            region.Width = right - left + 1;
            region.Height = bottom - top + 1;
            return region;
        }

        private static float Median(float[] values)
        {
            var sorted = (float[])values.Clone();
            Array.Sort(sorted);
            int middle = sorted.Length / 2;
            return sorted.Length % 2 == 1 ? sorted[middle] : (float)((float)(sorted[middle - 1] + sorted[middle]) / 2);
        }

        /// <summary>Finds the 8-connected regions above the threshold, strongest first. A rejected image without such a region
        /// gets a weak region: the pixels around the map's maximum that are above the mean of the map's median and
        /// maximum.</summary>
        public static List<Region> FindRegions(Map enlarged, double threshold, bool rejected)
        {
            float above = (float)threshold;
            bool[] inside = enlarged.Values.Select(value => value > above).ToArray();
            var found = new List<Region>();
            for (int n = 0; n < inside.Length; ++n)
                if (inside[n])
                    found.Add(TakeRegion(enlarged, inside, n, false));
            if (found.Count == 0 && rejected)
            {
                float maximum = enlarged.Values.Max();
                float least = (float)(((double)Median(enlarged.Values) + maximum) / 2);
                inside = enlarged.Values.Select(value => value >= least).ToArray();
                found.Add(TakeRegion(enlarged, inside, Array.IndexOf(enlarged.Values, maximum), true));
            }
            return found.OrderByDescending(region => region.Peak).ThenBy(region => region.Y).ThenBy(region => region.X).ToList();
        }

        /// <summary>Judges one image.</summary>
        /// <exception cref="InvalidOperationException">Score or map is not finite: NaN would pass as good.</exception>
        public static Verdict Judge(float score, Map map, int height, int width, Resize resize, double threshold)
        {
            if (map.Values.Concat(new[] { score }).Any(value => float.IsNaN(value) || float.IsInfinity(value)))
                throw new InvalidOperationException("the score or the map is not finite: use another device");
            var verdict = new Verdict { Score = score, Threshold = threshold, MapMaximum = map.Values.Max() };
            verdict.IsDefect = score > threshold;
            verdict.Regions = verdict.IsDefect || verdict.MapMaximum > threshold
                ? FindRegions(Enlarge(map, height, width, resize), threshold, verdict.IsDefect)
                : new List<Region>();
            return verdict;
        }
    }
}
