// Portable vectors of floats, as wide as the processor's registers, and memory aligned for them.
// Only what a compiler offers on every processor: no intrinsics.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <utility>

#if defined(__clang__)
#define FLYBALL_UNROLL _Pragma("clang loop unroll(full)")
#else
#define FLYBALL_UNROLL _Pragma("GCC unroll 32")
#endif
#define FLYBALL_INLINE __attribute__((always_inline)) inline

namespace flyball {

#if defined(__AVX512F__)
constexpr int kLanes = 16, kRegisters = 32;
#elif defined(__AVX__)
constexpr int kLanes = 8, kRegisters = 16;
#elif defined(__aarch64__)
constexpr int kLanes = 4, kRegisters = 32;
#else
constexpr int kLanes = 4, kRegisters = 16;
#endif

typedef float Vector __attribute__((vector_size(kLanes * sizeof(float))));

FLYBALL_INLINE Vector splat(float value) { return value - Vector{}; }

FLYBALL_INLINE Vector load(const float* from) {
  Vector v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

FLYBALL_INLINE void store(float* to, Vector v) { std::memcpy(to, &v, sizeof v); }

// Copies `count` < kLanes floats in pieces of 8, 4, 2 and 1: fixed sizes become single moves, and
// nothing past the end is touched.
FLYBALL_INLINE void copy_part(float* to, const float* from, int count) {
  if (count & 8) {
    std::memcpy(to, from, 8 * sizeof(float));
    to += 8, from += 8;
  }
  if (count & 4) {
    std::memcpy(to, from, 4 * sizeof(float));
    to += 4, from += 4;
  }
  if (count & 2) {
    std::memcpy(to, from, 2 * sizeof(float));
    to += 2, from += 2;
  }
  if (count & 1) *to = *from;
}

FLYBALL_INLINE Vector load_part(const float* from, int count) {
  alignas(Vector) float lanes[kLanes] = {};
  copy_part(lanes, from, count);
  return load(lanes);
}

FLYBALL_INLINE void store_part(float* to, Vector v, int count) {
  alignas(Vector) float lanes[kLanes];
  store(lanes, v);
  copy_part(to, lanes, count);
}

// An activation as the interval it clamps to: none (-inf, inf), ReLU (0, inf), ReLU6 (0, 6).
struct Clamp {
  float low, high;

  bool is_open() const { return low == -INFINITY && high == INFINITY; }

  // NaN stays NaN, as in torch.
  FLYBALL_INLINE Vector operator()(Vector v) const {
    const Vector least = splat(low), most = splat(high);
    v = v < least ? least : v;
    return v > most ? most : v;
  }
};

constexpr int64_t padded(int64_t channels) { return (channels + kLanes - 1) / kLanes * kLanes; }

// Memory aligned to cache lines that grows and never shrinks; what it holds is lost on growing.
template <typename T>
class Buffer {
 public:
  Buffer() = default;
  Buffer(Buffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  Buffer& operator=(Buffer&&) = delete;
  ~Buffer() { release(); }

  T* reserve(int64_t count) {
    if (count > size_) {
      release();
      data_ = static_cast<T*>(::operator new(static_cast<size_t>(count) * sizeof(T), kLine));
      size_ = count;
    }
    return data_;
  }
  T* data() { return data_; }
  const T* data() const { return data_; }
  T& operator[](int64_t i) { return data_[i]; }
  const T& operator[](int64_t i) const { return data_[i]; }

 private:
  static constexpr std::align_val_t kLine{64};
  void release() {
    if (data_) ::operator delete(data_, kLine);
    data_ = nullptr;
    size_ = 0;
  }
  T* data_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace flyball
