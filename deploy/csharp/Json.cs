// Reader of the metadata's JSON (RFC 8259). Numbers become double. The last of duplicate names counts.
using System;
using System.Collections.Generic;
using System.Globalization;
using System.Text;

namespace Anomaly
{
    /// <summary>Reads JSON as null, bool, double, string, List and Dictionary.</summary>
    public sealed class Json
    {
        private const int MaxDepth = 64;
        private readonly string source;
        private int at;

        private Json(string source)
        {
            this.source = source;
        }

        /// <exception cref="FormatException">The text is not valid JSON.</exception>
        public static object Parse(string source)
        {
            var reader = new Json(source);
            object value = reader.Read(0);
            reader.SkipBlanks();
            if (reader.at != source.Length)
                throw reader.Failure("text after the value");
            return value;
        }

        /// <summary>Casts a value to the type in the contract.</summary>
        /// <exception cref="FormatException">The value has another type.</exception>
        public static T As<T>(object value)
        {
            if (!(value is T))
                throw new FormatException("a value has another type than in the contract");
            return (T)value;
        }

        private FormatException Failure(string reason)
        {
            return new FormatException("invalid JSON at character " + at + ": " + reason);
        }

        private char Peek()
        {
            return at < source.Length ? source[at] : '\0';
        }

        private void SkipBlanks()
        {
            while (at < source.Length && " \t\r\n".IndexOf(source[at]) >= 0)
                ++at;
        }

        private bool Take(string word)
        {
            if (string.CompareOrdinal(source, at, word, 0, word.Length) != 0)
                return false;
            at += word.Length;
            return true;
        }

        private void Expect(string word)
        {
            SkipBlanks();
            if (!Take(word))
                throw Failure("'" + word + "' is missing");
        }

        private object Read(int depth)
        {
            if (depth > MaxDepth)
                throw Failure("the nesting is too deep");
            SkipBlanks();
            if (Take("null"))
                return null;
            if (Take("true"))
                return true;
            if (Take("false"))
                return false;
            if (Peek() == '"')
                return Text();
            if (Take("["))
            {
                var items = new List<object>();
                for (SkipBlanks(); !Take("]"); SkipBlanks())
                {
                    if (items.Count > 0)
                        Expect(",");
                    items.Add(Read(depth + 1));
                }
                return items;
            }
            if (Take("{"))
            {
                var members = new Dictionary<string, object>();
                for (SkipBlanks(); !Take("}"); SkipBlanks())
                {
                    if (members.Count > 0)
                        Expect(",");
                    SkipBlanks();
                    string name = Text();
                    Expect(":");
                    members[name] = Read(depth + 1);
                }
                return members;
            }
            return Number();
        }

        private void Digits()
        {
            if (Peek() < '0' || Peek() > '9')
                throw Failure("a digit is missing");
            while (Peek() >= '0' && Peek() <= '9')
                ++at;
        }

        private double Number()
        {
            int start = at;
            Take("-");
            if (!Take("0"))
                Digits();
            if (Take("."))
                Digits();
            if (Take("e") || Take("E"))
            {
                if (!Take("+"))
                    Take("-");
                Digits();
            }
            double value;
            string digits = source.Substring(start, at - start);
            bool isRead = double.TryParse(digits, NumberStyles.Float, CultureInfo.InvariantCulture, out value);
            if (!isRead || double.IsInfinity(value))
                throw Failure("the number is out of range");
            return value;
        }

        private char Hexadecimal()
        {
            int value = 0;
            for (int n = 0; n < 4; ++n, ++at)
            {
                int digit = at < source.Length ? "0123456789abcdef0123456789ABCDEF".IndexOf(source[at]) : -1;
                if (digit < 0)
                    throw Failure("four hexadecimal digits are missing");
                value = 16 * value + digit % 16;
            }
            return (char)value;
        }

        private string Text()
        {
            if (!Take("\""))
                throw Failure("'\"' is missing");
            var value = new StringBuilder();
            while (!Take("\""))
            {
                if (at >= source.Length || source[at] < ' ')
                    throw Failure("the end of a string is missing");
                if (!Take("\\"))
                {
                    value.Append(source[at++]);
                    continue;
                }
                int escape = at < source.Length ? "\"\\/bfnrt".IndexOf(source[at]) : -1;
                if (escape >= 0)
                {
                    value.Append("\"\\/\b\f\n\r\t"[escape]);
                    ++at;
                    continue;
                }
                if (!Take("u"))
                    throw Failure("an unknown escape");
                char unit = Hexadecimal();
                if (char.IsLowSurrogate(unit))
                    throw Failure("half a surrogate pair");
                value.Append(unit);
                if (!char.IsHighSurrogate(unit))
                    continue;
                char low = Take("\\u") ? Hexadecimal() : '\0';
                if (!char.IsLowSurrogate(low))
                    throw Failure("half a surrogate pair");
                value.Append(low);
            }
            return value.ToString();
        }
    }
}
