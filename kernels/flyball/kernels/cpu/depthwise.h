// The masked 3x3 depthwise convolution of rows that a table, or a ring, says where to find.
#pragma once

#include "product.h"

namespace flyball {

// One panel of `count` pixels: out row = clamp(bias + sum over the 9 taps of row x weight). A panel's
// 9 weights stay in registers. source(slot) is where a row's columns of the panel lie; `columns` of
// the last vector exist where kPart.
template <int kVectors, bool kPart, typename Source>
void depthwise_panel(const int32_t* slots, int count, const float* weights, const float* bias,
                     Clamp clamp, float* out, int64_t out_stride, int part, const Source& source) {
  Vector taps[9][kVectors];
  FLYBALL_UNROLL
  for (int t = 0; t < 9; t++) {
    FLYBALL_UNROLL
    for (int v = 0; v < kVectors; v++) taps[t][v] = load(weights + (t * kVectors + v) * kLanes);
  }
  for (int i = 0; i < count; i++, slots += 9, out += out_stride) {
    Vector sums[kVectors];
    FLYBALL_UNROLL
    for (int v = 0; v < kVectors; v++) sums[v] = load(bias + v * kLanes);
    FLYBALL_UNROLL
    for (int t = 0; t < 9; t++) {
      const float* row = source(slots[t]);
      FLYBALL_UNROLL
      for (int v = 0; v < kVectors; v++) {
        const bool cut = kPart && v == kVectors - 1;
        sums[v] += (cut ? load_part(row + v * kLanes, part) : load(row + v * kLanes)) * taps[t][v];
      }
    }
    FLYBALL_UNROLL
    for (int v = 0; v < kVectors; v++) {
      if (kPart && v == kVectors - 1)
        store_part(out + v * kLanes, clamp(sums[v]), part);
      else
        store(out + v * kLanes, clamp(sums[v]));
    }
  }
}

// All panels. source(column, width, slot) gives a row's columns of the panel; where `whole`, rows and
// out reach to the end of the last panel.
template <typename Source>
void depthwise(const Weight& weight, const int32_t* slots, int count, Clamp clamp, float* out,
               int64_t out_stride, bool whole, const Source& source) {
  const float* packed = weight.packed;
  for_each_panel(weight.outputs, [&](int64_t column, int vectors) {
    const int64_t width = int64_t{vectors} * kLanes;
    const int part = static_cast<int>(weight.outputs - column - (width - kLanes));
    const auto run = [&](auto form, auto cut) {
      depthwise_panel<form.value, cut.value>(
          slots, count, packed, weight.bias + column, clamp, out + column, out_stride, part,
          [&](int32_t slot) { return source(column, form.value * kLanes, slot); });
    };
    const auto cut_or_whole = [&](auto form) {
      if (whole || part >= kLanes)
        run(form, std::false_type{});
      else
        run(form, std::true_type{});
    };
    if (vectors == 3)
      cut_or_whole(std::integral_constant<int, 3>{});
    else if (vectors == 2)
      cut_or_whole(std::integral_constant<int, 2>{});
    else
      cut_or_whole(std::integral_constant<int, 1>{});
    packed += 9 * width;
  });
}

}  // namespace flyball
