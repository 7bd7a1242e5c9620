// A model file in ONNX Runtime: a camera's buffer in, a verdict with regions out.
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

        /// <exception cref="FormatException">A file that is not of the known contract.</exception>
        /// <exception cref="OnnxRuntimeException">ONNX Runtime cannot load it or has no such device. There is no fall-back to
        /// another device.</exception>
        public Scorer(string model, Device device)
        {
            using (var options = new SessionOptions())
            {
                options.LogSeverityLevel = OrtLoggingLevel.ORT_LOGGING_LEVEL_ERROR;
                if (device == Device.Cuda)
                    using (var cuda = new OrtCUDAProviderOptions())
                    {
                        // TF32 keeps 10 bits of each factor: scores would leave the tolerance
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

        /// <summary>Judges one image; the model's own limit is 1.</summary>
        /// <exception cref="ArgumentException">A limit that is no number, or an image that is not of a fixed model's
        /// size.</exception>
        public Verdict Score(ImageBuffer image, double limit = 1)
        {
            if (double.IsNaN(limit) || double.IsInfinity(limit))
                throw new ArgumentException("the limit is no number to compare scores with");
            long[] taken = Metadata.Fixed;
            if (taken.Length > 0 && (taken[1] != image.Height || taken[2] != image.Width))
                throw new ArgumentException("the model is fixed to " + taken[2] + "x" + taken[1]
                    + " pixels: give images of that size");
            long[] shape = { taken.Length > 0 ? taken[0] : 1, image.Height, image.Width, 3 };
            int size = 3 * image.Height * image.Width;
            var rgb = new byte[size * shape[0]];
            Contract.PackRgb(image, Metadata.White, rgb, 0);
            for (int at = size; at < rgb.Length; at += size)  // a fixed graph takes its number of images
                Array.Copy(rgb, 0, rgb, at, size);
            using (var options = new RunOptions())
            using (OrtValue input = OrtValue.CreateTensorValueFromMemory(rgb, shape))
            using (var said = session.Run(options, Inputs, new[] { input }, Outputs))
            {
                long[] lengths = said[1].GetTensorTypeAndShape().Shape;  // n, h, w
                int height = (int)lengths[1], width = (int)lengths[2];
                var map = new Map(height, width, said[1].GetTensorDataAsSpan<float>().Slice(0, height * width).ToArray());
                float score = said[0].GetTensorDataAsSpan<float>()[0];
                return Contract.Judge(score, map, image.Height, image.Width, Metadata.Resize, limit);
            }
        }

        /// <summary>Scores the model's golden image again.</summary>
        /// <exception cref="InvalidOperationException">This runtime says of it something else than was said at export: then
        /// verdicts are not to be trusted.</exception>
        public void CheckGolden(ImageBuffer golden)
        {
            Verdict verdict = Score(golden);
            double tolerance;
            if (!Metadata.GoldenTolerance.TryGetValue(provider, out tolerance))
                tolerance = DefaultTolerance;
            Check("score", Metadata.GoldenScore, verdict.Score, tolerance);
            Check("map's maximum", Metadata.GoldenMapMaximum, verdict.MapMaximum, tolerance);
        }

        private static void Check(string name, double was, double now, double tolerance)
        {
            if (!(Math.Abs(was - now) / Math.Max(1, Math.Abs(was)) <= tolerance))
                throw new InvalidOperationException("the golden image's " + name + " is " + now + ", was " + was
                    + " at export: this runtime computes something else");
        }

        public void Dispose()
        {
            session.Dispose();
        }
    }
}
