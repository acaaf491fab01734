// Passes over C x C matrices between the products of rotation and rotation_backward.
#pragma once
#include <cstdint>

namespace infodisent {

// Part number `number` of `count` about equal ones.
struct Share {
  int number, count;
};

// out_r = P_r( sum_k coefficient[r][k] * in_k ),   r = 0 .. rows-1
//   P_r(M) = M           parity[r] ==  0
//            M + M^T     parity[r] == +1
//            M - M^T     parity[r] == -1
// One read of every input and one write of every output, whatever the parities. A coefficient of
// zero reads nothing: its matrix may be uninitialised. An output may be one of the inputs. Of
// several shares each writes other elements of the outputs, and all of them together every one;
// where several run at once and a parity is not 0, no output may be an input.
template <typename T>
void combine(const T* const* in,         // [terms] of [n, n], contiguous
             int terms,                  //
             T* const* out,              // [rows] of [n, n], contiguous, distinct
             int rows,                   //
             const double* coefficient,  // [rows, terms]
             const int* parity,          // [rows] of -1, 0, +1
             int64_t n, Share share, int threads);

// The upper triangle from the lower one: x[i][j] = sign * x[j][i] for i < j.
template <typename T>
void mirror(T* x /* [n, n] */, int64_t n, double sign, int threads);

// result[0] = max_i sum_j |x[i][j]| (NaN if x holds one), result[1] = sum of squares.
template <typename T>
void norms(const T* x /* [n, n] */, int64_t n, double* result /* [2] */, int threads);

}  // namespace infodisent
