/*
 * Between xsave.c (instructions) and xsave_image.c (layout).
 */
#ifndef PARAT_X86_XSAVE_INT_H
#define PARAT_X86_XSAVE_INT_H

#include <stdbool.h>

#include "x86/defs.h"
#include "x86/xsave.h"

/* Offsets in the area */
#define XSAVE_MXCSR     24u
#define XSAVE_ST        32u
#define XSAVE_XMM       160u
#define XSAVE_XSTATE_BV 512u
#define XSAVE_XCOMP_BV  520u

#define XSAVE_ALL        (X86_XCR0_X87 | X86_XCR0_SSE | X86_XCR0_AVX)
#define XSAVE_COMPACTED  BIT(63) /* in XCOMP_BV */
#define XSAVE_MXCSR_INIT 0x1f80u

/* Bytes 0-23 and 32-159; wide: 64-bit FIP and FDP, else 32 bits with selectors. */
void x86_fxsave_put_x87(const struct x86_fpu *f, uint8_t *to, bool wide);
void x86_fxsave_get_x87(struct x86_fpu *f, const uint8_t *from, bool wide);

/* Component 0 (x87), 1 (XMM, without MXCSR), 2 (upper halves of YMM); `registers`: 8 or 16. */
void x86_xsave_init_component(struct x86_fpu *f, unsigned component, unsigned registers);

/* XINUSE: the components that are not in their initial state. MXCSR does not count. */
uint64_t x86_xsave_in_use(const struct x86_fpu *f);

#endif
