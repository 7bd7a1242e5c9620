// Scores one buffer from a file and prints the verdict as a line of JSON. Exit codes: 0 scored, 1 failed, 2 wrong usage.
using System;
using System.Globalization;
using System.IO;

namespace Anomaly
{
    public static class Program
    {
        private const string Usage =
            "AnomalyScore MODEL.onnx BUFFER mono8|mono16|rgb8|bgr8 WIDTH HEIGHT STRIDE\n"
            + "             [--threshold T] [--device cpu|cuda] [--golden]\n"
            + "  BUFFER       camera buffer in a file: HEIGHT rows of STRIDE bytes\n"
            + "  --threshold  threshold of the verdict; the model's own is 1\n"
            + "  --golden     BUFFER is the model's golden image: fail unless its score equals the score at export";

        public static int Main(string[] given)
        {
            var pixels = Pixels.Mono8;
            int width = 0, height = 0, stride = 0;
            double threshold = 1;
            var device = Device.Cpu;
            bool golden = false, usable = given.Length >= 6 && Enum.TryParse(given[2], true, out pixels)
                && int.TryParse(given[3], out width) && int.TryParse(given[4], out height) && int.TryParse(given[5], out stride);
            for (int n = 6; usable && n < given.Length; ++n)
            {
                bool hasValue = n + 1 < given.Length;
                if (given[n] == "--golden")
                    golden = true;
                else if (given[n] == "--threshold" && hasValue)
                    usable = double.TryParse(given[++n], NumberStyles.Float, CultureInfo.InvariantCulture, out threshold);
                else if (given[n] == "--device" && hasValue)
                    usable = Enum.TryParse(given[++n], true, out device) && Enum.IsDefined(typeof(Device), device);
                else
                    usable = false;
            }
            if (!usable)
            {
                Console.Error.WriteLine(Usage);
                return 2;
            }
            try
            {
                using (var scorer = new Scorer(given[0], device))
                {
                    var image = new ImageBuffer(File.ReadAllBytes(given[1]), 0, width, height, stride, pixels);
                    if (golden)
                        scorer.CheckGolden(image);
                    Console.WriteLine(scorer.Score(image, threshold).ToJson());
                }
            }
            catch (Exception error)
            {
                Console.Error.WriteLine("AnomalyScore: " + error.Message);
                return 1;
            }
            return 0;
        }
    }
}
