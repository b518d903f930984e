// Protocol Buffers' wire format, as much of it as a load client needs (protobuf.dev/programming-guides/encoding).
// Knows tags and lengths; knows nothing of tidegate's messages.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace wire {

void put_varint(std::string& out, uint64_t value);
// Field with a varint value.
void put_number(std::string& out, int field, uint64_t value);
// Field with a length: a string, a message or a packed list.
void put_bytes(std::string& out, int field, std::string_view value);

// Walks over the fields of one message: while (reader.next()) switch (reader.field()) …
class Reader {
 public:
  explicit Reader(std::string_view message) : rest_(message) {}

  // Moves to the next field; false at the end, and where the bytes are no message.
  bool next();
  bool is_broken() const { return is_broken_; }

  int field() const { return field_; }
  uint64_t number() const { return number_; }
  std::string_view bytes() const { return bytes_; }
  float as_float() const;

 private:
  bool fail();
  bool take(size_t size);

  std::string_view rest_;
  std::string_view bytes_;
  uint64_t number_ = 0;
  int field_ = 0;
  bool is_broken_ = false;
};

// Takes one varint off the front; false where there is none.
bool take_varint(std::string_view& bytes, uint64_t& value);
// Reads the index-th of packed little-endian floats.
float packed_float(std::string_view bytes, size_t index);

}  // namespace wire
