// The register tile: products of gathered rows with packed weights, written where they belong.
//
// A weight (taps, inputs, outputs) is cut into panels of one to three vectors of output columns, a
// panel laid out (taps, inputs, columns), so that the tile reads it in one stream. Every sum runs in
// the same order (bias, tap by tap, input by input) whatever the number of rows in a tile: the bits of
// a row depend on that row and the weights alone.
#pragma once

#include <algorithm>
#include <array>

#include "vectors.h"

namespace flyball {

constexpr int kMostVectors = 3;

// Rows of a tile for a panel of so many vectors: as many sums as registers hold beside the operands.
constexpr int tile_rows(int vectors) {
  constexpr int wide[] = {16, 12, 8}, narrow[] = {10, 6, 4};
  return kRegisters >= 32 ? wide[vectors - 1] : narrow[vectors - 1];
}

// Vectors of the next panel where `left` are left: threes, or twos rather than a single one.
constexpr int panel_vectors(int64_t left) {
  if (left % 3 == 1) return left == 1 ? 1 : 2;
  return left == 2 ? 2 : 3;
}

template <typename Visit>  // visit(first column, vectors of the panel)
FLYBALL_INLINE void for_each_panel(int64_t outputs, const Visit& visit) {
  int64_t left = padded(outputs) / kLanes;
  for (int64_t column = 0; left > 0;) {
    const int vectors = panel_vectors(left);
    visit(column, vectors);
    column += int64_t{vectors} * kLanes;
    left -= vectors;
  }
}

struct Weight {
  const float* packed;
  const float* bias;  // padded(outputs) long, zeros behind
  int64_t taps, inputs, outputs;
};

inline void pack(const float* weight, int64_t taps, int64_t inputs, int64_t outputs, float* out) {
  for_each_panel(outputs, [&](int64_t column, int vectors) {
    const int64_t width = int64_t{vectors} * kLanes;
    const int64_t filled = std::min(width, outputs - column);
    for (int64_t row = 0; row < taps * inputs; row++, out += width) {
      std::copy_n(weight + row * outputs + column, filled, out);
      std::fill(out + filled, out + width, 0.0f);
    }
  });
}

struct Tile {
  const float* const* rows;  // rows[tap * stride + row]: `inputs` floats each
  int64_t stride, taps, inputs;
  const float* panel;
  const float* bias;
  float* const* out;        // one a row
  const float* const* add;  // one a row, added before the clamp; or null
  int64_t columns;          // how many are written and added, up to the width of the panel
  Clamp clamp;
};

// Several inputs at once where many rows share few columns: else finding the rows takes longer than
// multiplying them.
template <int kSteps, int kRows, int kVectors>
FLYBALL_INLINE void add_steps(const float* const (&rows)[kRows], int64_t k, const float* panel,
                              Vector (&sums)[kRows][kVectors]) {
  Vector weights[kSteps][kVectors];
  FLYBALL_UNROLL
  for (int s = 0; s < kSteps; s++) {
    FLYBALL_UNROLL
    for (int v = 0; v < kVectors; v++) weights[s][v] = load(panel + (s * kVectors + v) * kLanes);
  }
  FLYBALL_UNROLL
  for (int r = 0; r < kRows; r++) {
    const float* row = rows[r] + k;
    FLYBALL_UNROLL
    for (int s = 0; s < kSteps; s++) {
      const Vector value = splat(row[s]);
      FLYBALL_UNROLL
      for (int v = 0; v < kVectors; v++) sums[r][v] += value * weights[s][v];
    }
  }
}

template <int kRows, int kVectors>
__attribute__((noinline)) void run_tile(const Tile& tile) {
  constexpr int64_t width = int64_t{kVectors} * kLanes;
  constexpr int kSteps = kVectors == 1 ? 4 : kVectors == 2 ? 2 : 1;
  Vector sums[kRows][kVectors];
  FLYBALL_UNROLL
  for (int r = 0; r < kRows; r++) {
    FLYBALL_UNROLL
    for (int v = 0; v < kVectors; v++) sums[r][v] = load(tile.bias + v * kLanes);
  }
  const float* panel = tile.panel;
  const int64_t inputs = tile.inputs;
  for (int64_t tap = 0; tap < tile.taps; tap++) {
    const float* rows[kRows];
    FLYBALL_UNROLL
    for (int r = 0; r < kRows; r++) rows[r] = tile.rows[tap * tile.stride + r];
    int64_t k = 0;
    for (; k + kSteps <= inputs; k += kSteps, panel += kSteps * width)
      add_steps<kSteps>(rows, k, panel, sums);
    if constexpr (kSteps > 1)
      for (; k < inputs; k++, panel += width) add_steps<1>(rows, k, panel, sums);
  }
  const int part = static_cast<int>(tile.columns - (width - kLanes));  // of the last vector
  FLYBALL_UNROLL
  for (int r = 0; r < kRows; r++) {
    FLYBALL_UNROLL
    for (int v = 0; v < kVectors; v++) {
      Vector sum = sums[r][v];
      float* to = tile.out[r] + v * kLanes;
      if (v == kVectors - 1 && part < kLanes) {
        if (tile.add) sum += load_part(tile.add[r] + v * kLanes, part);
        store_part(to, tile.clamp(sum), part);
      } else {
        if (tile.add) sum += load(tile.add[r] + v * kLanes);
        store(to, tile.clamp(sum));
      }
    }
  }
}

using RunTile = void (*)(const Tile&);

template <int kVectors, size_t... kRow>
constexpr auto tiles_of(std::index_sequence<kRow...>) {
  return std::array<RunTile, sizeof...(kRow)>{run_tile<static_cast<int>(kRow) + 1, kVectors>...};
}

template <int kVectors>
constexpr auto kTiles = tiles_of<kVectors>(std::make_index_sequence<tile_rows(kVectors)>{});

inline RunTile find_tile(int rows, int vectors) {
  if (vectors == 3) return kTiles<3>[rows - 1];
  return vectors == 2 ? kTiles<2>[rows - 1] : kTiles<1>[rows - 1];
}

// out row = clamp(bias + sum over taps and inputs of row x weight [+ add]) for `count` rows.
// target(row, first column, width) says where a row's columns of a panel go; `add` gives whole rows.
template <typename Target>
void product(const Weight& weight, const float* const* rows, int64_t stride, int count,
             const float* const* add, Clamp clamp, bool whole_panels, const Target& target) {
  const float* packed = weight.packed;
  for_each_panel(weight.outputs, [&](int64_t column, int vectors) {
    constexpr int most = tile_rows(1);
    const int64_t width = int64_t{vectors} * kLanes;
    const int pieces = (count + tile_rows(vectors) - 1) / tile_rows(vectors);
    float* out[most];
    const float* added[most];
    const int64_t columns = whole_panels ? width : std::min(width, weight.outputs - column);
    for (int piece = 0; piece < pieces; piece++) {  // of nearly equal size
      const int begin = count * piece / pieces, size = count * (piece + 1) / pieces - begin;
      for (int r = 0; r < size; r++) {
        out[r] = target(begin + r, column, width);
        if (add) added[r] = add[begin + r] + column;
      }
      find_tile(size, vectors)(Tile{rows + begin, stride, weight.taps, weight.inputs, packed,
                                    weight.bias + column, out, add ? added : nullptr, columns,
                                    clamp});
    }
    packed += weight.taps * weight.inputs * width;
  });
}

}  // namespace flyball
