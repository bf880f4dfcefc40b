/*
 * The XSAVE image of the x87, SSE and AVX state, in the standard (not compacted) format: what
 * engines exchange with a kernel or hardware. SDM vol. 1 chapter 13. Pure functions.
 */
#ifndef PARAT_X86_XSAVE_H
#define PARAT_X86_XSAVE_H

#include <stddef.h>
#include <stdint.h>

#include "base/bits.h"
#include "x86/state.h"

#define X86_XSAVE_LEGACY_SIZE 512u
#define X86_XSAVE_HEADER_SIZE 64u
#define X86_XSAVE_AVX_OFFSET  576u
#define X86_XSAVE_SIZE        832u /* with x87, SSE and AVX */

/* Bits of MXCSR that exist, as FXSAVE's MXCSR_MASK tells. */
#define X86_MXCSR_MASK 0xffffu

/* All three components are marked as present. */
void x86_xsave_to_image(const struct x86_fpu *fpu, uint8_t image[X86_XSAVE_SIZE]);

/*
 * Components that XSTATE_BV does not name get their initial values. -EINVAL, *fpu unchanged: the
 * image is shorter than its contents, compacted, has other components, or a reserved MXCSR bit.
 */
int x86_xsave_from_image(struct x86_fpu *fpu, const uint8_t *image, size_t size) MUST_USE;

#endif
