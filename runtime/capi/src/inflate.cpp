// Huffman codes and repetitions undone, into no more bytes than were asked for.
#include "inflate.hpp"

#include "digests.hpp"

namespace edgead {

namespace {

constexpr int MOST_BITS = 15;

// A canonical Huffman code: how many codes of each length, and the symbols in the order of their codes.
struct Code {
    uint16_t count[MOST_BITS + 1] = {0};
    uint16_t symbols[288] = {0};

    // False where more codes are given than there are, or fewer, unless there is at most one.
    bool make(const uint8_t *lengths, int number) {
        int given = 0;
        for (int i = 0; i <= MOST_BITS; i++) count[i] = 0;
        for (int i = 0; i < number; i++) count[lengths[i]]++, given += lengths[i] != 0;
        int left = 1;
        for (int bits = 1; bits <= MOST_BITS; bits++) {
            left = 2 * left - count[bits];
            if (left < 0) return false;
        }
        uint16_t start[MOST_BITS + 2] = {0};
        for (int bits = 1; bits <= MOST_BITS; bits++) start[bits + 1] = static_cast<uint16_t>(start[bits] + count[bits]);
        for (int i = 0; i < number; i++)
            if (lengths[i]) symbols[start[lengths[i]]++] = static_cast<uint16_t>(i);
        return left == 0 || given <= 1;
    }
};

class Inflater {
  public:
    Inflater(const uint8_t *data, size_t length, size_t size, std::vector<uint8_t> &out)
        : data_(data), length_(length), size_(size), out_(out) {}

    bool run() {
        out_.clear();
        out_.reserve(size_ < (1u << 24) ? size_ : 1u << 24);
        for (bool last = false; !last;) {
            last = bits(1) != 0;
            const uint32_t kind = bits(2);
            const bool right = kind == 0 ? stored() : kind == 1 ? fixed() : kind == 2 ? dynamic() : false;
            if (!right || short_) return false;
        }
        return out_.size() == size_;
    }

    size_t position() const { return at_; }

  private:
    uint32_t bits(int number) {
        while (held_ < number) {
            if (at_ == length_) {
                short_ = true;
                return 0;
            }
            buffer_ |= static_cast<uint64_t>(data_[at_++]) << held_;
            held_ += 8;
        }
        const auto value = static_cast<uint32_t>(buffer_ & ((uint64_t{1} << number) - 1));
        buffer_ >>= number, held_ -= number;
        return value;
    }

    // The next symbol, -1 where there is none.
    int symbol(const Code &code) {
        int value = 0, first = 0, index = 0;
        for (int length = 1; length <= MOST_BITS; length++) {
            value |= static_cast<int>(bits(1));
            if (short_) return -1;
            const int count = code.count[length];
            if (value - count < first) return code.symbols[index + value - first];
            index += count;
            first = (first + count) << 1;
            value <<= 1;
        }
        return -1;
    }

    bool stored() {
        buffer_ = 0, held_ = 0;
        if (length_ - at_ < 4) return false;
        const size_t count = data_[at_] | static_cast<size_t>(data_[at_ + 1]) << 8;
        const size_t inverse = data_[at_ + 2] | static_cast<size_t>(data_[at_ + 3]) << 8;
        at_ += 4;
        if (count != (~inverse & 0xFFFF) || length_ - at_ < count || size_ - out_.size() < count) return false;
        out_.insert(out_.end(), data_ + at_, data_ + at_ + count);
        at_ += count;
        return true;
    }

    bool fixed() {
        uint8_t lengths[288], distances[30];
        for (int i = 0; i < 288; i++) lengths[i] = i < 144 ? 8 : i < 256 ? 9 : i < 280 ? 7 : 8;
        for (uint8_t &one : distances) one = 5;
        Code literal, distance;
        literal.make(lengths, 288);
        distance.make(distances, 30);
        return codes(literal, distance);
    }

    bool dynamic() {
        static const uint8_t ORDER[19] = {16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15};
        const int literals = static_cast<int>(bits(5)) + 257, distances = static_cast<int>(bits(5)) + 1;
        const int given = static_cast<int>(bits(4)) + 4;
        if (short_ || literals > 286 || distances > 30) return false;
        uint8_t lengths[320] = {0};
        for (int i = 0; i < given; i++) lengths[ORDER[i]] = static_cast<uint8_t>(bits(3));
        Code of_lengths;
        if (short_ || !of_lengths.make(lengths, 19)) return false;
        for (uint8_t &one : lengths) one = 0;
        for (int i = 0; i < literals + distances;) {
            const int found = symbol(of_lengths);
            if (found < 0) return false;
            if (found < 16) {
                lengths[i++] = static_cast<uint8_t>(found);
                continue;
            }
            if (found == 16 && i == 0) return false;
            const uint8_t repeated = found == 16 ? lengths[i - 1] : 0;
            int times = static_cast<int>(found == 16 ? 3 + bits(2) : found == 17 ? 3 + bits(3) : 11 + bits(7));
            if (short_ || i + times > literals + distances) return false;
            while (times--) lengths[i++] = repeated;
        }
        Code literal, distance;
        if (!lengths[256] || !literal.make(lengths, literals) || !distance.make(lengths + literals, distances)) return false;
        return codes(literal, distance);
    }

    bool codes(const Code &literal, const Code &distance) {
        static const uint16_t BASE[29] = {3,  4,  5,  6,  7,  8,  9,  10, 11,  13,  15,  17,  19,  23, 27,
                                          31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258};
        static const uint8_t EXTRA[29] = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0};
        for (;;) {
            const int found = symbol(literal);
            if (found < 0) return false;
            if (found == 256) return true;
            if (found < 256) {
                if (out_.size() == size_) return false;
                out_.push_back(static_cast<uint8_t>(found));
                continue;
            }
            if (found > 285) return false;
            const size_t length = BASE[found - 257] + bits(EXTRA[found - 257]);
            const int which = symbol(distance);
            if (which < 0) return false;
            const int more = which < 4 ? 0 : which / 2 - 1;
            const size_t nearest = which < 4 ? static_cast<size_t>(which) : (size_t{2} + (which & 1u)) << more;
            const size_t back = nearest + 1 + bits(more);
            if (short_ || back > out_.size() || size_ - out_.size() < length) return false;
            for (size_t i = 0; i < length; i++) out_.push_back(out_[out_.size() - back]);
        }
    }

    const uint8_t *data_;
    size_t length_, size_, at_ = 0;
    std::vector<uint8_t> &out_;
    uint64_t buffer_ = 0;
    int held_ = 0;
    bool short_ = false;
};

}  // namespace

bool inflate_raw(const uint8_t *data, size_t length, size_t size, std::vector<uint8_t> &out) {
    return Inflater(data, length, size, out).run();
}

bool inflate_zlib(const std::vector<uint8_t> &stream, size_t size, std::vector<uint8_t> &out) {
    if (stream.size() < 6) return false;
    const unsigned head = stream[0] * 256u + stream[1];
    if ((stream[0] & 15) != 8 || head % 31 || stream[1] & 32) return false;
    Inflater inflater(stream.data() + 2, stream.size() - 2, size, out);
    if (!inflater.run()) return false;
    const size_t end = inflater.position() + 2;
    if (stream.size() - end < 4) return false;
    uint32_t a = 1, b = 0;
    for (uint8_t byte : out) a = (a + byte) % 65521, b = (b + a) % 65521;
    const uint32_t told = static_cast<uint32_t>(stream[end]) << 24 | static_cast<uint32_t>(stream[end + 1]) << 16 |
                          static_cast<uint32_t>(stream[end + 2]) << 8 | stream[end + 3];
    return agree(b << 16 | a, told);
}

}  // namespace edgead
