// Which pixels of one image run, which a 3x3 window around them touches, and where those are kept.
//
// Two grids: the output grid (out_height, out_width), on which the mask lies, and the grid it is
// computed from (height, width), a 3x3 window of padding 1 and this stride between them.
#pragma once

#include <algorithm>
#include <cstring>

#include "vectors.h"

namespace flyball {

struct Grid {
  int height, width, out_height, out_width, stride;

  int pixels() const { return height * width; }
  int out_pixels() const { return out_height * out_width; }
  int padded_width() const { return width + 2; }
  int padded_pixels() const { return (height + 2) * padded_width(); }
};

// The lists of one image. Positions rise, so that rows can be computed and dropped as a stream: what
// pixel i of `active` needs lies between first[i] and past[i] of `dilated`, both rising too.
struct Lists {
  Buffer<int32_t> active, dilated, first, past;
  Buffer<int32_t> window;  // where that of each active pixel begins on the padded grid
  Buffer<int32_t> place;   // of each dilated pixel on the padded grid
  Buffer<int32_t> slot;    // on the padded grid: where in a ring a row is kept; 0 outside the image
  Buffer<uint8_t> marks, spread;
  int actives = 0, dilateds = 0;
  int span = 0;  // the most rows any pixel needs at once

  void build(const uint8_t* mask, const Grid& grid) {
    list_pixels(mask, grid);
    const int32_t* rank = slot.data();
    const int wide = grid.padded_width();
    first.reserve(actives + 1), past.reserve(actives + 1);
    window.reserve(actives + 1);
    const int32_t* pixels = active.data();
    int32_t *from = first.data(), *until = past.data(), *corner = window.data();
    const int count = actives;
    for (int i = 0, y = 0, row = 0; i < count; i++) {
      for (; pixels[i] >= row + grid.out_width; row += grid.out_width) y++;
      const int x = pixels[i] - row, up = y * grid.stride, left = x * grid.stride;
      // The window's first and last pixel inside the image.
      const int bottom = std::min(up + 2, grid.height), right = std::min(left + 2, grid.width);
      corner[i] = up * wide + left;
      from[i] = rank[std::max(up, 1) * wide + std::max(left, 1)];
      until[i] = rank[bottom * wide + right] + 1;
    }
    // Windows are cut at the image's edge: make both lists rise.
    for (int i = 1; i < count; i++) until[i] = std::max(until[i], until[i - 1]);
    for (int i = count - 2; i >= 0; i--) from[i] = std::min(from[i], from[i + 1]);
    int most = 0;
    for (int i = 0; i < count; i++) most = std::max(most, until[i] - from[i]);
    span = most;
  }

  // Gives every dilated pixel from `begin` on the next of `ring` slots, counted from 1.
  void assign_slots(int begin, int end, int ring, const Grid& grid) {
    std::fill_n(slot.reserve(grid.padded_pixels()), grid.padded_pixels(), 0);
    int32_t* slots = slot.data();
    const int32_t* places = place.data();
    for (int j = begin, next = 1; j < end; j++, next = next == ring ? 1 : next + 1)
      slots[places[j]] = next;
  }

 private:
  // Fills active, dilated, and slot with the index into dilated.
  void list_pixels(const uint8_t* mask, const Grid& grid) {
    active.reserve(grid.out_pixels() + 1), dilated.reserve(grid.pixels() + 1);
    place.reserve(grid.pixels() + 1);
    const int wide = grid.padded_width();
    int32_t* rank = slot.reserve(grid.padded_pixels());
    if (!mask && grid.stride == 1) {
      actives = dilateds = grid.pixels();
      for (int i = 0; i < actives; i++) active[i] = dilated[i] = i;
      for (int y = 0, i = 0; y < grid.height; y++)
        for (int x = 0; x < grid.width; x++, i++) {
          place[i] = (y + 1) * wide + x + 1;
          rank[place[i]] = i;
        }
      return;
    }
    uint8_t* mark = marks.reserve(grid.padded_pixels() + kStep);
    uint8_t* wider = spread.reserve(grid.padded_pixels() + kStep);
    std::fill_n(mark, grid.padded_pixels() + kStep, uint8_t{0});
    std::fill_n(wider, grid.padded_pixels() + kStep, uint8_t{0});
    int count = 0;
    int32_t* pixels = active.data();
    for (int y = 0; y < grid.out_height; y++) {
      uint8_t* row = mark + (y * grid.stride + 1) * wide + 1;
      const uint8_t* given = mask ? mask + y * grid.out_width : nullptr;
      for (int x = 0; x < grid.out_width; x++) row[x * grid.stride] = !given || given[x] != 0;
    }
    for (int y = 0; y < grid.out_height; y++)
      for_each_set(mark + (y * grid.stride + 1) * wide + 1, grid.width, [&](int x, bool is_set) {
        pixels[count] = y * grid.out_width + x / grid.stride;
        count += is_set;
      });
    actives = count;
    for (int i = 1; i + 1 < grid.padded_pixels(); i++)
      wider[i] = mark[i - 1] | mark[i] | mark[i + 1];
    count = 0;
    int32_t *touched = dilated.data(), *places = place.data();
    for (int y = 1; y <= grid.height; y++) {
      const uint8_t *above = wider + (y - 1) * wide, *row = above + wide, *below = row + wide;
      for (int x = 1; x <= grid.width; x++) mark[x] = above[x] | row[x] | below[x];
      std::fill_n(mark + grid.width + 1, kStep, uint8_t{0});
      for_each_set(mark + 1, grid.width, [&](int x, bool is_set) {
        const int at = y * wide + x + 1;
        touched[count] = (y - 1) * grid.width + x;
        places[count] = at;
        rank[at] = count;
        count += is_set;
      });
    }
    dilateds = count;
  }

  static constexpr int kStep = 8;

  // Visits flags (0 or 1) in order, passing over eights of zeros. Where the width is no multiple of
  // eight, it reads past the row; what is set there belongs to others and is not visited.
  template <typename Visit>
  static void for_each_set(const uint8_t* flags, int width, const Visit& visit) {
    for (int x = 0; x < width; x += kStep) {
      uint64_t word;
      std::memcpy(&word, flags + x, sizeof word);
      if (word == 0) continue;
      const int end = std::min(x + kStep, width);
      for (int i = x; i < end; i++) visit(i, flags[i] != 0);
    }
  }
};

}  // namespace flyball
