// Test driver of the C# example without ONNX Runtime. It reads the same lines as pure.cpp.
using System;
using System.Collections.Generic;
using System.Globalization;
using System.IO;
using System.Linq;

namespace Anomaly
{
    public static class Pure
    {
        private static string Pack(string[] words)
        {
            int[] numbers = words.Skip(3).Select(int.Parse).ToArray();
            var pixels = (Pixels)Enum.Parse(typeof(Pixels), words[1], true);
            var buffer = new ImageBuffer(File.ReadAllBytes(words[2]), numbers[0], numbers[1], numbers[2], numbers[3], pixels);
            var rgb = new byte[3 * buffer.Width * buffer.Height];
            Contract.PackRgb(buffer, numbers[4], rgb, 0);
            return string.Concat(rgb.Select(value => value.ToString("x2")));
        }

        private static string Judge(string[] words)
        {
            byte[] bytes = File.ReadAllBytes(words[1]);
            var values = new float[bytes.Length / 4];
            Buffer.BlockCopy(bytes, 0, values, 0, bytes.Length);
            int[] sizes = words.Skip(2).Take(4).Select(int.Parse).ToArray();
            var resize = (Resize)Enum.Parse(typeof(Resize), words[6], true);
            float score = float.Parse(words[7], CultureInfo.InvariantCulture);
            double threshold = double.Parse(words[8], CultureInfo.InvariantCulture);
            return Contract.Judge(score, new Map(sizes[0], sizes[1], values), sizes[2], sizes[3], resize, threshold).ToJson();
        }

        private static string Metadata(string[] words)
        {
            Dictionary<string, string> stored = File.ReadAllLines(words[1])
                .ToDictionary(line => line.Substring(0, line.IndexOf('=')), line => line.Substring(line.IndexOf('=') + 1));
            var read = new Metadata(stored);
            IEnumerable<string> values = new[] { read.Resize.ToString().ToLowerInvariant(), read.White.ToString() }
                .Concat(new[] { read.Alpha, read.GoldenScore, read.GoldenMapMaximum }.Select(Exact))
                .Concat(read.GoldenTolerance.OrderBy(pair => pair.Key, StringComparer.Ordinal)
                    .SelectMany(pair => new[] { pair.Key, Exact(pair.Value) }))
                .Concat(read.Fixed.Select(length => length.ToString()));
            return string.Join(" ", values);
        }

        private static string Exact(double value)
        {
            return value.ToString("R", CultureInfo.InvariantCulture);
        }

        public static void Main()
        {
            for (string line = Console.ReadLine(); line != null; line = Console.ReadLine())
            {
                string[] words = line.Split(' ');
                try
                {
                    Console.WriteLine(words[0] == "pack" ? Pack(words) : words[0] == "judge" ? Judge(words) : Metadata(words));
                }
                catch (Exception error)
                {
                    Console.WriteLine("error: " + error.Message);
                }
            }
        }
    }
}
