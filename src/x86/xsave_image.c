/*
 * Layout of the FXSAVE and XSAVE areas. Pure. SDM vol. 1 section 10.5 (FXSAVE, table 10-2), 13.4
 * (XSAVE area).
 */
#include <errno.h>

#include "x86/x87_int.h"
#include "x86/xsave_int.h"

void x86_fxsave_put_x87(const struct x86_fpu *f, uint8_t *to, bool wide)
{
    store_le16(to, f->fcw);
    store_le16(to + 2, f->fsw);
    to[4] = f->ftw;
    to[5] = 0;
    store_le16(to + 6, f->fop);
    if (wide) {
        store_le64(to + 8, f->fip);
        store_le64(to + 16, f->fdp);
    } else {
        store_le64(to + 8, (uint32_t)f->fip | (uint64_t)f->fcs << 32);
        store_le64(to + 16, (uint32_t)f->fdp | (uint64_t)f->fds << 32);
    }
    memcpy(to + XSAVE_ST, f->st, sizeof f->st);
}

void x86_fxsave_get_x87(struct x86_fpu *f, const uint8_t *from, bool wide)
{
    f->fcw = (load_le16(from) & FCW_VALID) | FCW_FIXED;
    f->fsw = load_le16(from + 2);
    f->ftw = from[4];
    f->fop = load_le16(from + 6) & 0x7ff;
    f->fip = wide ? load_le64(from + 8) : load_le32(from + 8);
    f->fdp = wide ? load_le64(from + 16) : load_le32(from + 16);
    f->fcs = wide ? 0 : load_le16(from + 12);
    f->fds = wide ? 0 : load_le16(from + 20);
    for (unsigned i = 0; i < 8; i++) {
        store_le64(f->st[i], load_le64(from + XSAVE_ST + i * 16));
        store_le64(f->st[i] + 8, load_le16(from + XSAVE_ST + i * 16 + 8));
    }
    x86_fpu_update_es(f);
}

void x86_xsave_init_component(struct x86_fpu *f, unsigned component, unsigned registers)
{
    switch (component) {
    case 0:
        x86_fpu_init_x87(f);
        memset(f->st, 0, sizeof f->st);
        break;
    case 1:
        for (unsigned i = 0; i < registers; i++)
            memset(f->ymm[i], 0, 16);
        break;
    default:
        for (unsigned i = 0; i < registers; i++)
            memset(f->ymm[i] + 16, 0, 16);
        break;
    }
}

/* The bits that are set in any of `count` halves of registers, each `stride` bytes behind. */
static uint64_t any_bits(const uint8_t *half, unsigned count, unsigned stride)
{
    uint64_t low = 0, high = 0;

    for (unsigned i = 0; i < count; i++) {
        low |= load_le64(half + i * stride);
        high |= load_le64(half + i * stride + 8);
    }
    return low | high;
}

uint64_t x86_xsave_in_use(const struct x86_fpu *f)
{
    uint64_t in_use = 0;

    if (f->fcw != FCW_DEFAULT || f->fsw || f->ftw || f->fop || f->fip || f->fdp || f->fcs ||
        f->fds || any_bits(f->st[0], 8, 16))
        in_use |= X86_XCR0_X87;
    if (any_bits(f->ymm[0], 16, 32))
        in_use |= X86_XCR0_SSE;
    if (any_bits(f->ymm[0] + 16, 16, 32))
        in_use |= X86_XCR0_AVX;
    return in_use;
}

void x86_xsave_to_image(const struct x86_fpu *f, uint8_t image[X86_XSAVE_SIZE])
{
    memset(image, 0, X86_XSAVE_SIZE);
    x86_fxsave_put_x87(f, image, true);
    store_le32(image + XSAVE_MXCSR, f->mxcsr);
    store_le32(image + XSAVE_MXCSR + 4, X86_MXCSR_MASK);
    for (unsigned i = 0; i < 16; i++) {
        memcpy(image + XSAVE_XMM + i * 16, f->ymm[i], 16);
        memcpy(image + X86_XSAVE_AVX_OFFSET + i * 16, f->ymm[i] + 16, 16);
    }
    store_le64(image + XSAVE_XSTATE_BV, XSAVE_ALL);
}

int x86_xsave_from_image(struct x86_fpu *f, const uint8_t *image, size_t size)
{
    uint64_t present;
    uint32_t mxcsr;

    if (size < X86_XSAVE_AVX_OFFSET)
        return -EINVAL;
    present = load_le64(image + XSAVE_XSTATE_BV);
    mxcsr = load_le32(image + XSAVE_MXCSR);
    if (present & ~XSAVE_ALL || load_le64(image + XSAVE_XCOMP_BV) ||
        (present & X86_XCR0_AVX && size < X86_XSAVE_SIZE) || mxcsr & ~X86_MXCSR_MASK)
        return -EINVAL;
    for (unsigned i = 0; i < 3; i++)
        x86_xsave_init_component(f, i, 16);
    if (present & X86_XCR0_X87)
        x86_fxsave_get_x87(f, image, true);
    for (unsigned i = 0; i < 16; i++) {
        if (present & X86_XCR0_SSE)
            memcpy(f->ymm[i], image + XSAVE_XMM + i * 16, 16);
        if (present & X86_XCR0_AVX)
            memcpy(f->ymm[i] + 16, image + X86_XSAVE_AVX_OFFSET + i * 16, 16);
    }
    f->mxcsr = mxcsr;
    return 0;
}
