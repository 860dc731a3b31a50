// The arithmetic of tensor cores, the same for mma.sync and wgmma.
#pragma once

namespace convnet::emu {

// What one instruction does: sum[m][n] += a[m][0] b[0][n] + a[m][1] b[1][n] + ... over all `terms`, where a is
// [rows][terms], b [terms][columns] and sum [rows][columns], each without gaps. Operands are bf16 or tf32 values, whose
// products are exact in double; they are added to the old sum in this order, and the end result is cut to float32 toward
// zero, as hardware does. A zero is +0, a NaN is 0x7fffffff. The bits are the same on every machine.
// `terms` is 8 or 16. Fastest when `columns` is a multiple of 8.
void multiply_add(int rows, int columns, int terms, const double* a, const double* b, float* sum);

}  // namespace convnet::emu
