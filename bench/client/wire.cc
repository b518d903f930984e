#include "wire.h"

#include <cstring>

namespace wire {
namespace {

constexpr int kVarint = 0;
constexpr int kFixed64 = 1;
constexpr int kLength = 2;
constexpr int kFixed32 = 5;

}  // namespace

void put_varint(std::string& out, uint64_t value) {
  for (; value > 127; value >>= 7) out += static_cast<char>(value | 128);
  out += static_cast<char>(value);
}

void put_number(std::string& out, int field, uint64_t value) {
  put_varint(out, field << 3 | kVarint);
  put_varint(out, value);
}

void put_bytes(std::string& out, int field, std::string_view value) {
  put_varint(out, field << 3 | kLength);
  put_varint(out, value.size());
  out += value;
}

bool take_varint(std::string_view& bytes, uint64_t& value) {
  value = 0;
  for (size_t at = 0; at < bytes.size() && at < 10; ++at) {
    value |= static_cast<uint64_t>(bytes[at] & 127) << (7 * at);
    if (!(bytes[at] & 128)) {
      bytes.remove_prefix(at + 1);
      return true;
    }
  }
  return false;
}

float packed_float(std::string_view bytes, size_t index) {
  float value = 0;
  std::memcpy(&value, bytes.data() + index * sizeof value, sizeof value);
  return value;
}

float Reader::as_float() const { return bytes_.size() == sizeof(float) ? packed_float(bytes_, 0) : 0; }

bool Reader::next() {
  if (rest_.empty()) return false;
  uint64_t tag = 0;
  if (!take_varint(rest_, tag)) return fail();
  field_ = static_cast<int>(tag >> 3);
  switch (tag & 7) {
    case kVarint:
      return take_varint(rest_, number_) || fail();
    case kFixed64:
      return take(8);
    case kFixed32:
      return take(4);
    case kLength: {
      uint64_t size = 0;
      return take_varint(rest_, size) ? take(size) : fail();
    }
    default:
      return fail();
  }
}

bool Reader::take(size_t size) {
  if (rest_.size() < size) return fail();
  bytes_ = rest_.substr(0, size);
  rest_.remove_prefix(size);
  return true;
}

bool Reader::fail() {
  is_broken_ = true;
  return false;
}

}  // namespace wire
