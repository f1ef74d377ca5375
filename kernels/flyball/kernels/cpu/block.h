// A whole residual block of one image, as a stream: no intermediate leaves the caches.
//
//   rows x --first--> ring --middle--> few rows --last, + identity, clamp--> out
//
// first:  a 1x1 or 3x3 convolution of the dilated pixels into a ring of rows, a block at a time
// middle: nothing, a 3x3 depthwise or a 3x3 convolution of the active pixels, out of the ring
// last:   a 1x1 convolution of the middle's rows, or a 3x3 convolution out of the ring
//
// Both lists rise, so a row of the ring is free as soon as no later pixel looks at it. Rows of x are
// read once, before any pixel at or behind them is written: out may be x itself.
#pragma once

#include "depthwise.h"
#include "lists.h"

namespace flyball {

enum class Middle : int32_t { none = 0, depthwise = 1, convolution = 2 };

struct Block {
  Weight first, middle, last;
  Middle kind;
  int first_stride;  // of a 3x3 first
  Clamp inner, outer;
};

struct Image {
  const float* x;  // rows (height * width, inputs)
  int height, width;
  const float* identity;  // rows (out pixels, outputs)
  float* out;             // the same; may be identity
};

constexpr int kBlock = 48;  // rows that go through each step at a time

// What one thread needs for one block; kept between calls.
class Stream {
 public:
  // Runs active pixels [begin, end) of the lists. `halo` holds copies of the rows of x that lie, on
  // the grid, before the first or behind the last of these pixels (or is null: x itself is read).
  void run(const Block& block, const Grid& grid, Lists& lists, const Image& image, int begin,
           int end, const float* halo) {
    pass_by(block, grid, lists, image, begin, end);
    if (begin == end) return;
    const int from = lists.first[begin], until = lists.past[end - 1];
    const int ring = std::min(until - from, lists.span + 2 * kBlock);
    lay_out(block, ring);
    lists.assign_slots(from, until, ring, grid);
    int filled = from;
    for (int i = begin; i < end;) {
      int ready = 0;
      for (;;) {
        const int most = std::min(kBlock, end - i);
        while (ready < most && lists.past[i + ready] <= filled) ready++;
        const int next = std::min(kBlock, until - filled);
        if (ready == most || filled + next - lists.first[i] > ring) break;
        fill(block, grid, lists, image, filled, next, begin, end, halo);
        filled += next;
      }
      finish(block, grid, lists, image, i, ready);
      i += ready;
    }
  }

 private:
  Buffer<float> ring_, middle_, zeros_;
  int slots_ = 0;         // of the ring, the one of zeros included
  int64_t ring_stride_ = 0, middle_stride_ = 0;
  int next_slot_ = 1;
  const float* rows_[9 * kBlock];
  const float* identity_[kBlock];
  int32_t taps_[9 * kBlock];

  // Padded by a cache line, or rows of 2^n bytes would all fall into the same few places of a cache.
  static int64_t row_stride(int64_t channels) { return padded(channels) + 16; }

  // Depthwise reads the ring panel by panel, so its ring lies panel by panel: a panel's columns of
  // all slots, then the next panel's. A convolution reads whole rows.
  float* at(const Block& block, int64_t column, int64_t width, int slot) {
    if (block.kind == Middle::depthwise) return ring_.data() + slots_ * column + slot * width;
    return ring_.data() + slot * ring_stride_ + column;
  }

  void lay_out(const Block& block, int ring) {
    slots_ = ring + 1;
    ring_stride_ = row_stride(block.first.outputs);
    middle_stride_ = row_stride(block.middle.outputs);
    ring_.reserve(slots_ * ring_stride_);
    for_each_panel(block.first.outputs, [&](int64_t column, int vectors) {  // slot 0 is outside
      const int64_t width = int64_t{vectors} * kLanes;
      std::fill_n(at(block, column, width, 0), width, 0.0f);
    });
    if (block.kind != Middle::none) middle_.reserve(kBlock * middle_stride_);
    std::fill_n(zeros_.reserve(block.first.inputs), block.first.inputs, 0.0f);
    next_slot_ = 1;
  }

  // Writes identity, clamped, where pixels do not run: around and between [begin, end).
  void pass_by(const Block& block, const Grid& grid, const Lists& lists, const Image& image,
               int begin, int end) {
    if (image.out == image.identity && block.outer.is_open()) return;
    int pixel = begin == 0 ? 0 : lists.active[begin];
    for (int i = begin; i <= end; i++) {
      const bool behind = i == end;
      const int next = !behind                 ? lists.active[i]
                       : end == lists.actives ? grid.out_pixels()
                                               : lists.active[end];
      const int64_t start = pixel * block.last.outputs;
      const int64_t count = (next - pixel) * block.last.outputs;
      copy_clamped(image.identity + start, image.out + start, count, block.outer);
      // [begin, end) of another thread starts at active[end].
      pixel = behind ? next : next + 1;
    }
  }

  static void copy_clamped(const float* from, float* to, int64_t count, Clamp clamp) {
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) store(to + i, clamp(load(from + i)));
    if (i < count) {
      const int part = static_cast<int>(count - i);
      store_part(to + i, clamp(load_part(from + i, part)), part);
    }
  }

  // Computes `count` dilated pixels from `start` on into the ring.
  void fill(const Block& block, const Grid& grid, const Lists& lists, const Image& image, int start,
            int count, int begin, int end, const float* halo) {
    const int64_t channels = block.first.inputs;
    if (block.first.taps == 9) {
      find_windows(block, grid, image, lists.dilated.data() + start, count);
    } else if (!halo) {
      for (int r = 0; r < count; r++)
        rows_[r] = image.x + lists.dilated[start + r] * channels;
    } else {
      const int own = lists.active[begin], last = lists.active[end - 1];
      const int from = lists.first[begin];
      for (int r = 0; r < count; r++) {
        const int pixel = lists.dilated[start + r];
        const bool mine = pixel >= own && pixel <= last;
        rows_[r] = mine ? image.x + pixel * channels : halo + (start + r - from) * channels;
      }
    }
    const int slot = next_slot_, ring = slots_ - 1;
    product(block.first, rows_, kBlock, count, nullptr, block.inner, true,
            [&](int row, int64_t column, int64_t width) {
              const int to = slot + row;
              return at(block, column, width, to > ring ? to - ring : to);
            });
    next_slot_ = slot + count > ring ? slot + count - ring : slot + count;
  }

  // The 9 rows of x that a 3x3 convolution of each of these output pixels reads.
  void find_windows(const Block& block, const Grid& grid, const Image& image,
                    const int32_t* pixels, int count) {
    const int64_t channels = block.first.inputs, line = image.width * channels;
    int y = pixels[0] / grid.width;
    for (int r = 0; r < count; r++) {
      while (pixels[r] >= (y + 1) * grid.width) y++;
      const int top = y * block.first_stride - 1;
      const int left = (pixels[r] - y * grid.width) * block.first_stride - 1;
      const float* corner = image.x + top * line + left * channels;
      const float** rows = rows_ + r;
      const bool inside = top >= 0 && left >= 0 && top + 3 <= image.height &&
                          left + 3 <= image.width;
      for (int t = 0; t < 9; t++) {
        const int dy = t / 3, dx = t % 3;
        const bool given = inside || (top + dy >= 0 && top + dy < image.height && left + dx >= 0 &&
                                      left + dx < image.width);
        rows[t * kBlock] = given ? corner + dy * line + dx * channels : zeros_.data();
      }
    }
  }

  // Middle, last and the sum for `count` active pixels from `start` on.
  void finish(const Block& block, const Grid& grid, const Lists& lists, const Image& image,
              int start, int count) {
    const int wide = grid.padded_width();
    const bool tap_major = block.kind != Middle::depthwise;
    for (int r = 0; r < count; r++) {
      const int32_t* window = lists.slot.data() + lists.window[start + r];
      for (int t = 0; t < 9; t++) {
        const int32_t slot = window[t / 3 * wide + t % 3];
        if (tap_major)
          rows_[t * kBlock + r] = at(block, 0, 0, slot);
        else
          taps_[r * 9 + t] = slot;
      }
    }
    if (block.kind == Middle::depthwise)
      depthwise(block.middle, taps_, count, block.inner, middle_.data(), middle_stride_, true,
                [&](int64_t column, int64_t width, int32_t slot) {
                  return at(block, column, width, slot);
                });
    if (block.kind == Middle::convolution)
      product(block.middle, rows_, kBlock, count, nullptr, block.inner, true,
              [&](int row, int64_t column, int64_t) {
                return middle_.data() + row * middle_stride_ + column;
              });
    if (block.kind != Middle::none)
      for (int r = 0; r < count; r++) rows_[r] = middle_.data() + r * middle_stride_;
    const int64_t outputs = block.last.outputs;
    const int32_t* pixels = lists.active.data() + start;
    for (int r = 0; r < count; r++) identity_[r] = image.identity + pixels[r] * outputs;
    product(block.last, rows_, kBlock, count, identity_, block.outer, false,
            [&](int row, int64_t column, int64_t) {
              return image.out + pixels[row] * outputs + column;
            });
  }
};

}  // namespace flyball
