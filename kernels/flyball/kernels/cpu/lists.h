// Which pixels of one image run, which a 3x3 window around them touches, and where those are kept.
//
// Two grids: the output grid (out_height, out_width), on which the mask lies, and the grid it is
// computed from (height, width), a 3x3 window of padding 1 and this stride between them.
#pragma once

#include <algorithm>

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
    for (int i = 0, y = 0, row = 0; i < actives; i++) {
      for (; active[i] >= row + grid.out_width; row += grid.out_width) y++;
      const int x = active[i] - row, up = y * grid.stride, left = x * grid.stride;
      // The window's first and last pixel inside the image.
      const int bottom = std::min(up + 2, grid.height), right = std::min(left + 2, grid.width);
      window[i] = up * wide + left;
      first[i] = rank[std::max(up, 1) * wide + std::max(left, 1)];
      past[i] = rank[bottom * wide + right] + 1;
    }
    // Windows are cut at the image's edge: make both lists rise.
    for (int i = 1; i < actives; i++) past[i] = std::max(past[i], past[i - 1]);
    for (int i = actives - 2; i >= 0; i--) first[i] = std::min(first[i], first[i + 1]);
    span = 0;
    for (int i = 0; i < actives; i++) span = std::max(span, past[i] - first[i]);
  }

  // Gives every dilated pixel from `begin` on the next of `ring` slots, counted from 1.
  void assign_slots(int begin, int end, int ring, const Grid& grid) {
    std::fill_n(slot.reserve(grid.padded_pixels()), grid.padded_pixels(), 0);
    for (int j = begin, next = 1; j < end; j++, next = next == ring ? 1 : next + 1)
      slot[place[j]] = next;
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
    uint8_t* mark = marks.reserve(grid.padded_pixels());
    uint8_t* wider = spread.reserve(grid.padded_pixels());
    std::fill_n(mark, grid.padded_pixels(), uint8_t{0});
    actives = dilateds = 0;
    for (int y = 0, i = 0; y < grid.out_height; y++) {
      uint8_t* row = mark + (y * grid.stride + 1) * wide + 1;
      for (int x = 0; x < grid.out_width; x++, i++) {
        const bool runs = !mask || mask[i] != 0;
        row[x * grid.stride] = runs;
        active[actives] = i;
        actives += runs;
      }
    }
    std::fill_n(wider, grid.padded_pixels(), uint8_t{0});
    for (int i = 1; i + 1 < grid.padded_pixels(); i++)
      wider[i] = mark[i - 1] | mark[i] | mark[i + 1];
    for (int y = 1; y <= grid.height; y++) {
      const uint8_t* row = wider + y * wide;
      for (int x = 1; x <= grid.width; x++) {
        dilated[dilateds] = (y - 1) * grid.width + x - 1;
        place[dilateds] = y * wide + x;
        rank[y * wide + x] = dilateds;
        dilateds += (row[x - wide] | row[x] | row[x + wide]);
      }
    }
  }
};

}  // namespace flyball
