// A model in ONNX Runtime: from a camera's buffer to a verdict with regions.
using System;
using System.Collections.Generic;
using Microsoft.ML.OnnxRuntime;

namespace Anomaly
{
    public enum Device { Cpu, Cuda }

    public sealed class Scorer : IDisposable
    {
        private const double DefaultTolerance = 1e-3;
        private static readonly string[] Inputs = { "image" }, Outputs = { "score", "anomaly_map" };
        private readonly InferenceSession session;
        private readonly string provider;

        public readonly Metadata Metadata;

        /// <exception cref="FormatException">The file follows another contract.</exception>
        /// <exception cref="OnnxRuntimeException">ONNX Runtime cannot load the file or does not have the device. There is
        /// no fallback to another device.</exception>
        public Scorer(string model, Device device)
        {
            using (var options = new SessionOptions())
            {
                options.LogSeverityLevel = OrtLoggingLevel.ORT_LOGGING_LEVEL_ERROR;
                if (device == Device.Cuda)
                    using (var cuda = new OrtCUDAProviderOptions())
                    {
                        // TF32 keeps 10 bits of each factor, and scores would exceed the tolerance
                        cuda.UpdateOptions(new Dictionary<string, string> { { "use_tf32", "0" } });
                        options.AppendExecutionProvider_CUDA(cuda);
                    }
                session = new InferenceSession(model, options);
            }
            try
            {
                Metadata = new Metadata(session.ModelMetadata.CustomMetadataMap);
            }
            catch
            {
                session.Dispose();
                throw;
            }
            provider = device == Device.Cuda ? "CUDAExecutionProvider" : "CPUExecutionProvider";
        }

        /// <summary>Judges one image; the model's own threshold is 1.</summary>
        /// <exception cref="ArgumentException">The threshold is not finite, or a fixed model does not take the size of the
        /// image.</exception>
        public Verdict Score(ImageBuffer image, double threshold = 1)
        {
            if (double.IsNaN(threshold) || double.IsInfinity(threshold))
                throw new ArgumentException("the threshold is not finite: give a number");
            long[] required = Metadata.Fixed;
            if (required.Length > 0 && (required[1] != image.Height || required[2] != image.Width))
                throw new ArgumentException("the model is fixed to " + required[2] + "x" + required[1]
                    + " pixels: give images of that size");
            long[] shape = { required.Length > 0 ? required[0] : 1, image.Height, image.Width, 3 };
            int size = 3 * image.Height * image.Width;
            var rgb = new byte[size * shape[0]];
            Contract.PackRgb(image, Metadata.White, rgb, 0);
            for (int at = size; at < rgb.Length; at += size)  // a fixed graph needs its number of images
                Array.Copy(rgb, 0, rgb, at, size);
            using (var options = new RunOptions())
            using (OrtValue input = OrtValue.CreateTensorValueFromMemory(rgb, shape))
            using (var output = session.Run(options, Inputs, new[] { input }, Outputs))
            {
                long[] lengths = output[1].GetTensorTypeAndShape().Shape;  // n, h, w
                int height = (int)lengths[1], width = (int)lengths[2];
                var map = new Map(height, width, output[1].GetTensorDataAsSpan<float>().Slice(0, height * width).ToArray());
                float score = output[0].GetTensorDataAsSpan<float>()[0];
                return Contract.Judge(score, map, image.Height, image.Width, Metadata.Resize, threshold);
            }
        }

        /// <summary>Scores the model's golden image.</summary>
        /// <exception cref="InvalidOperationException">The result differs from the result at export: verdicts of this
        /// runtime are then invalid.</exception>
        public void CheckGolden(ImageBuffer golden)
        {
            Verdict verdict = Score(golden);
            double tolerance;
            if (!Metadata.GoldenTolerance.TryGetValue(provider, out tolerance))
                tolerance = DefaultTolerance;
            Check("score", Metadata.GoldenScore, verdict.Score, tolerance);
            Check("map's maximum", Metadata.GoldenMapMaximum, verdict.MapMaximum, tolerance);
        }

        private static void Check(string name, double expected, double actual, double tolerance)
        {
            if (!(Math.Abs(expected - actual) / Math.Max(1, Math.Abs(expected)) <= tolerance))
                throw new InvalidOperationException("the golden image's " + name + " is " + actual + ", at export "
                    + expected + ": this runtime computes other results; use another one");
        }

        public void Dispose()
        {
            session.Dispose();
        }
    }
}
