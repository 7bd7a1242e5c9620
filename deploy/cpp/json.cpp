#include "json.h"

#include <locale>
#include <sstream>
#include <stdexcept>

namespace anomaly {
namespace {

constexpr int max_depth = 64;

class Reader {
public:
    explicit Reader(std::string_view source) : source_(source) {}

    Json document() {
        Json value = read(0);
        skip_blanks();
        if (at_ != source_.size()) fail("text after the value");
        return value;
    }

private:
    std::string_view source_;
    std::size_t at_ = 0;

    [[noreturn]] void fail(const std::string& reason) const {
        throw std::runtime_error("invalid JSON at character " + std::to_string(at_) + ": " + reason);
    }
    char peek() const { return at_ < source_.size() ? source_[at_] : '\0'; }
    void skip_blanks() {
        while (at_ < source_.size() && std::string_view(" \t\r\n").find(source_[at_]) != std::string_view::npos) ++at_;
    }
    bool take(std::string_view word) {
        if (source_.substr(at_, word.size()) != word) return false;
        at_ += word.size();
        return true;
    }
    void expect(std::string_view word) {
        skip_blanks();
        if (!take(word)) fail("'" + std::string(word) + "' is missing");
    }

    Json read(int depth) {
        if (depth > max_depth) fail("the nesting is too deep");
        skip_blanks();
        Json value;
        if (take("null")) return value;
        if (take("true") || take("false")) {
            value.kind = Json::Kind::boolean;
            value.boolean = source_[at_ - 2] == 'u';  // in true
        } else if (peek() == '"') {
            value.kind = Json::Kind::text;
            value.text = text();
        } else if (take("[")) {
            value.kind = Json::Kind::array;
            for (skip_blanks(); !take("]"); skip_blanks()) {
                if (!value.items.empty()) expect(",");
                value.items.push_back(read(depth + 1));
            }
        } else if (take("{")) {
            value.kind = Json::Kind::object;
            for (skip_blanks(); !take("}"); skip_blanks()) {
                if (!value.members.empty()) expect(",");
                skip_blanks();
                const std::string name = text();
                expect(":");
                value.members[name] = read(depth + 1);
            }
        } else {
            value.kind = Json::Kind::number;
            value.number = number();
        }
        return value;
    }

    void digits() {
        if (peek() < '0' || peek() > '9') fail("a digit is missing");
        while (peek() >= '0' && peek() <= '9') ++at_;
    }
    double number() {
        const std::size_t start = at_;
        take("-");
        if (!take("0")) digits();
        if (take(".")) digits();
        if (take("e") || take("E")) {
            if (!take("+")) take("-");
            digits();
        }
        std::istringstream stream{std::string(source_.substr(start, at_ - start))};
        stream.imbue(std::locale::classic());  // decimal point, independent of the program's locale
        double value = 0;
        if (!(stream >> value)) fail("the number is out of range");
        return value;
    }

    unsigned hexadecimal() {
        unsigned value = 0;
        for (int n = 0; n < 4; ++n, ++at_) {
            const std::size_t digit = std::string_view("0123456789abcdef0123456789ABCDEF").find(peek());
            if (at_ >= source_.size() || digit == std::string_view::npos) fail("four hexadecimal digits are missing");
            value = 16 * value + static_cast<unsigned>(digit % 16);
        }
        return value;
    }
    std::string text() {
        if (!take("\"")) fail("'\"' is missing");
        std::string value;
        while (!take("\"")) {
            if (at_ >= source_.size() || static_cast<unsigned char>(source_[at_]) < 0x20) fail("the end of a string is missing");
            if (!take("\\")) {
                value += source_[at_++];
                continue;
            }
            const std::size_t escape = std::string_view("\"\\/bfnrt").find(peek());
            if (at_ < source_.size() && escape != std::string_view::npos) {
                value += "\"\\/\b\f\n\r\t"[escape];
                ++at_;
                continue;
            }
            if (!take("u")) fail("an unknown escape");
            unsigned code = hexadecimal();
            if (code >= 0xD800 && code < 0xDC00 && take("\\u")) {  // the first half of a pair
                const unsigned low = hexadecimal();
                if (low < 0xDC00 || low > 0xDFFF) fail("half a surrogate pair");
                code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
            }
            if (code >= 0xD800 && code < 0xE000) fail("half a surrogate pair");
            append_utf8(value, code);
        }
        return value;
    }
    static void append_utf8(std::string& value, unsigned code) {
        const auto byte = [&value](unsigned bits) { value += static_cast<char>(bits); };
        if (code < 0x80) return byte(code);
        if (code < 0x800) {
            byte(0xC0 | (code >> 6));
        } else {
            if (code < 0x10000) {
                byte(0xE0 | (code >> 12));
            } else {
                byte(0xF0 | (code >> 18));
                byte(0x80 | ((code >> 12) & 0x3F));
            }
            byte(0x80 | ((code >> 6) & 0x3F));
        }
        byte(0x80 | (code & 0x3F));
    }
};

const Json& of_kind(const Json& value, Json::Kind kind) {
    if (value.kind != kind) throw std::runtime_error("a value has another type than in the contract");
    return value;
}

}  // namespace

Json Json::parse(std::string_view source) { return Reader(source).document(); }
double Json::as_number() const { return of_kind(*this, Kind::number).number; }
const std::string& Json::as_text() const { return of_kind(*this, Kind::text).text; }
const std::vector<Json>& Json::as_items() const { return of_kind(*this, Kind::array).items; }
const std::map<std::string, Json>& Json::as_members() const { return of_kind(*this, Kind::object).members; }
const Json& Json::at(const std::string& name) const {
    const auto found = as_members().find(name);
    if (found == members.end()) throw std::runtime_error("'" + name + "' is missing");
    return found->second;
}

}  // namespace anomaly
