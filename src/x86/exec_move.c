/*
 * Data movement: MOV between registers, memory and immediates, extensions, LEA, exchanges,
 * conditional moves and sets, byte swaps, XLAT, sign extensions of the accumulator. vCPU thread.
 * SDM vol. 1 section 7.3.1. MOV with segment, control and debug registers is system.c's.
 */
#include "x86/exec_cond.h"
#include "x86/exec_int.h"

#define SIZES(name)                                                                                \
    {                                                                                              \
        name##_1, name##_2, name##_4, name##_8                                                     \
    }
#define FOR_SIZES(M) M(1) M(2) M(4) M(8)

/* Loads and stores, each in its fast and its whole form. */
#define LOAD_HANDLER(name, from, to, extend)                                                       \
    NO_INLINE void name##_whole(struct x86_cpu *cpu, const struct x86_insn *insn)                  \
    {                                                                                              \
        uint64_t value = mem_load(cpu, insn, from);                                                \
        reg_write(cpu, insn->dst, to, extend(value));                                              \
    }                                                                                              \
    static void name(struct x86_cpu *cpu, const struct x86_insn *insn)                             \
    {                                                                                              \
        const char *p = fast_read(cpu, insn, from);                                                \
        if (unlikely(!p)) {                                                                        \
            name##_whole(cpu, insn);                                                               \
            return;                                                                                \
        }                                                                                          \
        uint64_t value = host_load(p, from);                                                       \
        reg_write(cpu, insn->dst, to, extend(value));                                              \
    }
#define STORE_HANDLER(name, size, value)                                                           \
    NO_INLINE void name##_whole(struct x86_cpu *cpu, const struct x86_insn *insn)                  \
    {                                                                                              \
        mem_store(cpu, insn, size, value);                                                         \
    }                                                                                              \
    static void name(struct x86_cpu *cpu, const struct x86_insn *insn)                             \
    {                                                                                              \
        char *p = fast_write(cpu, insn, size);                                                     \
        if (unlikely(!p)) {                                                                        \
            name##_whole(cpu, insn);                                                               \
            return;                                                                                \
        }                                                                                          \
        host_store(p, size, value);                                                                \
    }

#define SIGNED_1(v) sign_extend(v, 1)
#define SIGNED_2(v) sign_extend(v, 2)
#define SIGNED_4(v) sign_extend(v, 4)

/* --- MOV --- */

#define MOV_HANDLERS(n)                                                                            \
    static void mov_rr_##n(struct x86_cpu *cpu, const struct x86_insn *insn)                       \
    {                                                                                              \
        reg_write(cpu, insn->dst, n, reg_read(cpu, insn->src, n));                                 \
    }                                                                                              \
    static void mov_ri_##n(struct x86_cpu *cpu, const struct x86_insn *insn)                       \
    {                                                                                              \
        reg_write(cpu, insn->dst, n, insn->imm);                                                   \
    }                                                                                              \
    LOAD_HANDLER(mov_rm_##n, n, n, )                                                               \
    STORE_HANDLER(mov_mr_##n, n, reg_read(cpu, insn->dst, n))                                      \
    STORE_HANDLER(mov_mi_##n, n, insn->imm)                                                        \
    /* The offset of the form without ModRM, up to 64 bits, is in imm. */                          \
    static void mov_ro_##n(struct x86_cpu *cpu, const struct x86_insn *insn)                       \
    {                                                                                              \
        uint64_t la = x86_linear(cpu, insn->seg, insn->imm, n, X86_READ);                          \
        gpr_write(cpu, X86_RAX, n, x86_load(cpu, la, n));                                          \
    }                                                                                              \
    static void mov_or_##n(struct x86_cpu *cpu, const struct x86_insn *insn)                       \
    {                                                                                              \
        uint64_t la = x86_linear(cpu, insn->seg, insn->imm, n, X86_WRITE);                         \
        x86_store(cpu, la, n, gpr_read(cpu, X86_RAX, n));                                          \
    }
FOR_SIZES(MOV_HANDLERS);

static bool bind_mov_offset(const struct x86_decode *d, struct x86_insn *out, unsigned memory)
{
    static x86_handler *const load[] = SIZES(mov_ro), *const store[] = SIZES(mov_or);
    uint64_t offset = (uint64_t)d->op[memory].mem.disp.value;

    out->imm = offset & size_mask(out->address_size);
    out->run = (memory ? load : store)[size_index(out->size)];
    return true;
}

static bool bind_mov(const struct x86_decode *d, struct x86_insn *out)
{
    static x86_handler *const rr[] = SIZES(mov_rr), *const ri[] = SIZES(mov_ri),
                              *const rm[] = SIZES(mov_rm), *const mr[] = SIZES(mov_mr),
                              *const mi[] = SIZES(mov_mi);
    unsigned i = size_index(out->size);

    if ((is_reg(d, 0) && !is_gpr(d, 0)) || (is_reg(d, 1) && !is_gpr(d, 1)))
        return x86_bind_mov_system(d, out);
    if (d->z->opcode_map == ZYDIS_OPCODE_MAP_DEFAULT && (d->z->opcode & 0xfc) == 0xa0)
        return bind_mov_offset(d, out, is_mem(d, 1));
    if (is_mem(d, 0))
        out->run = is_imm(d, 1) ? mi[i] : mr[i];
    else if (is_mem(d, 1))
        out->run = rm[i];
    else
        out->run = is_imm(d, 1) ? ri[i] : rr[i];
    return true;
}

/* MOVNTI: the hint does not show. */
static bool bind_movnti(const struct x86_decode *d, struct x86_insn *out)
{
    out->run = out->size == 8 ? mov_mr_8 : mov_mr_4;
    return true;
}

/* --- MOVZX, MOVSX, MOVSXD: from size s to size n --- */

#define EXTEND(s, n)                                                                               \
    static void movzx_rr_##s##n(struct x86_cpu *cpu, const struct x86_insn *insn)                  \
    {                                                                                              \
        reg_write(cpu, insn->dst, n, reg_read(cpu, insn->src, s));                                 \
    }                                                                                              \
    LOAD_HANDLER(movzx_rm_##s##n, s, n, )                                                          \
    LOAD_HANDLER(movsx_rm_##s##n, s, n, SIGNED_##s)                                                \
    static void movsx_rr_##s##n(struct x86_cpu *cpu, const struct x86_insn *insn)                  \
    {                                                                                              \
        reg_write(cpu, insn->dst, n, sign_extend(reg_read(cpu, insn->src, s), s));                 \
    }
EXTEND(1, 2);
EXTEND(1, 4);
EXTEND(1, 8);
EXTEND(2, 2);
EXTEND(2, 4);
EXTEND(2, 8);
EXTEND(4, 4);
EXTEND(4, 8);

/* [log2 of source size][log2 of destination size] */
#define EXTEND_TABLE(name)                                                                         \
    {                                                                                              \
        {NULL, name##_12, name##_14, name##_18}, {NULL, name##_22, name##_24, name##_28},          \
            {NULL, NULL, name##_44, name##_48},                                                    \
    }

static bool bind_extend(const struct x86_decode *d, struct x86_insn *out,
                        x86_handler *const handlers[2][3][4])
{
    unsigned from = size_index(d->op[1].size / 8u);
    out->run = handlers[is_mem(d, 1)][from][size_index(out->size)];
    return out->run != NULL;
}

static bool bind_movzx(const struct x86_decode *d, struct x86_insn *out)
{
    static x86_handler *const handlers[2][3][4] = {EXTEND_TABLE(movzx_rr), EXTEND_TABLE(movzx_rm)};
    return bind_extend(d, out, handlers);
}

static bool bind_movsx(const struct x86_decode *d, struct x86_insn *out)
{
    static x86_handler *const handlers[2][3][4] = {EXTEND_TABLE(movsx_rr), EXTEND_TABLE(movsx_rm)};
    return bind_extend(d, out, handlers);
}

/* --- LEA --- */

static void lea_2(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    reg_write(cpu, insn->dst, 2, x86_ea(cpu, insn));
}

static void lea_4(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    reg_write(cpu, insn->dst, 4, x86_ea(cpu, insn));
}

static void lea_8(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    reg_write(cpu, insn->dst, 8, x86_ea(cpu, insn));
}

static bool bind_lea(const struct x86_decode *d, struct x86_insn *out)
{
    out->run = out->size == 8 ? lea_8 : out->size == 4 ? lea_4 : lea_2;
    return true;
}

/* --- XCHG: with memory always locked --- */

/* In assembly, because the guest's pointer need not be aligned. */
#define HOST_XCHG(n, type)                                                                         \
    ALWAYS_INLINE uint64_t host_xchg_##n(void *p, uint64_t value)                                  \
    {                                                                                              \
        type v = (type)value;                                                                      \
        __asm__ volatile("xchg %0, (%1)" : "+r"(v) : "r"(p) : "memory");                           \
        return v;                                                                                  \
    }
HOST_XCHG(1, uint8_t);
HOST_XCHG(2, uint16_t);
HOST_XCHG(4, uint32_t);
HOST_XCHG(8, uint64_t);

ALWAYS_INLINE uint64_t host_xchg(void *p, unsigned size, uint64_t value)
{
    return size == 1   ? host_xchg_1(p, value)
           : size == 2 ? host_xchg_2(p, value)
           : size == 4 ? host_xchg_4(p, value)
                       : host_xchg_8(p, value);
}

ALWAYS_INLINE void run_xchg_rm(struct x86_cpu *cpu, const struct x86_insn *insn, unsigned size)
{
    uint64_t la = x86_operand_la(cpu, insn, size, X86_WRITE);
    uint64_t old, value = reg_read(cpu, insn->dst, size);
    void *p = x86_atomic_pointer(cpu, la, size);

    if (likely(p)) {
        old = host_xchg(p, size, value);
    } else {
        x86_probe_write(cpu, la, size);
        cpu->ops->exclusive_begin(cpu->context);
        old = x86_load(cpu, la, size);
        x86_store(cpu, la, size, value);
        cpu->ops->exclusive_end(cpu->context);
    }
    reg_write(cpu, insn->dst, size, old);
}

#define XCHG_HANDLERS(n)                                                                           \
    static void xchg_rr_##n(struct x86_cpu *cpu, const struct x86_insn *insn)                      \
    {                                                                                              \
        uint64_t a = reg_read(cpu, insn->dst, n), b = reg_read(cpu, insn->src, n);                 \
        reg_write(cpu, insn->dst, n, b);                                                           \
        reg_write(cpu, insn->src, n, a);                                                           \
    }                                                                                              \
    static void xchg_rm_##n(struct x86_cpu *cpu, const struct x86_insn *insn)                      \
    {                                                                                              \
        run_xchg_rm(cpu, insn, n);                                                                 \
    }
FOR_SIZES(XCHG_HANDLERS);

static bool bind_xchg(const struct x86_decode *d, struct x86_insn *out)
{
    static x86_handler *const rr[] = SIZES(xchg_rr), *const rm[] = SIZES(xchg_rm);
    out->run = (is_mem(d, 0) || is_mem(d, 1) ? rm : rr)[size_index(out->size)];
    return true;
}

/* F3 90 is PAUSE; with REX.B it is the exchange with R8 that it would be without F3. */
static bool bind_pause(const struct x86_decode *d, struct x86_insn *out)
{
    bool rex_b = d->z->attributes & ZYDIS_ATTRIB_HAS_REX && d->z->raw.rex.B;

    if (!rex_b)
        return false; /* exec_misc.c */
    out->dst = GPR_OFFSET(X86_R8);
    out->src = GPR_OFFSET(X86_RAX);
    out->run = d->z->raw.rex.W                                   ? xchg_rr_8
               : d->z->attributes & ZYDIS_ATTRIB_HAS_OPERANDSIZE ? xchg_rr_2
                                                                 : xchg_rr_4;
    return true;
}

/* --- CMOVcc: reads its source always, and a 32-bit one always clears the upper half --- */

#define CMOV_HANDLERS(cc)                                                                          \
    ALWAYS_INLINE void cmov_##cc(struct x86_cpu *cpu, const struct x86_insn *insn, unsigned size,  \
                                 uint64_t value)                                                   \
    {                                                                                              \
        uint64_t old = reg_read(cpu, insn->dst, size);                                             \
        reg_write(cpu, insn->dst, size, cond_##cc(cpu->s.rflags) ? value : old);                   \
    }                                                                                              \
    CMOV_SIZE(cc, 2) CMOV_SIZE(cc, 4) CMOV_SIZE(cc, 8)
#define CMOV_SIZE(cc, n)                                                                           \
    static void cmov_##cc##_rr_##n(struct x86_cpu *cpu, const struct x86_insn *insn)               \
    {                                                                                              \
        cmov_##cc(cpu, insn, n, reg_read(cpu, insn->src, n));                                      \
    }                                                                                              \
    static void cmov_##cc##_rm_##n(struct x86_cpu *cpu, const struct x86_insn *insn)               \
    {                                                                                              \
        cmov_##cc(cpu, insn, n, mem_load(cpu, insn, n));                                           \
    }
FOR_CONDITIONS(CMOV_HANDLERS);

static bool bind_cmov(const struct x86_decode *d, struct x86_insn *out)
{
#define CMOV_ROW(cc)                                                                               \
    {{cmov_##cc##_rr_2, cmov_##cc##_rr_4, cmov_##cc##_rr_8},                                       \
     {cmov_##cc##_rm_2, cmov_##cc##_rm_4, cmov_##cc##_rm_8}},
    static x86_handler *const handlers[16][2][3] = {FOR_CONDITIONS(CMOV_ROW)};
    out->run = handlers[d->z->opcode & 15][is_mem(d, 1)][size_index(out->size) - 1];
    return true;
}

/* --- SETcc --- */

#define SET_HANDLERS(cc)                                                                           \
    static void set_##cc##_r(struct x86_cpu *cpu, const struct x86_insn *insn)                     \
    {                                                                                              \
        reg_write(cpu, insn->dst, 1, cond_##cc(cpu->s.rflags));                                    \
    }                                                                                              \
    static void set_##cc##_m(struct x86_cpu *cpu, const struct x86_insn *insn)                     \
    {                                                                                              \
        mem_store(cpu, insn, 1, cond_##cc(cpu->s.rflags));                                         \
    }
FOR_CONDITIONS(SET_HANDLERS);

static bool bind_set(const struct x86_decode *d, struct x86_insn *out)
{
#define SET_ROW(cc) {set_##cc##_r, set_##cc##_m},
    static x86_handler *const handlers[16][2] = {FOR_CONDITIONS(SET_ROW)};
    out->run = handlers[d->z->opcode & 15][is_mem(d, 0)];
    return true;
}

/* --- BSWAP, MOVBE --- */

ALWAYS_INLINE uint64_t swap_bytes(uint64_t value, unsigned size)
{
    switch (size) {
    case 2:
        return __builtin_bswap16((uint16_t)value);
    case 4:
        return __builtin_bswap32((uint32_t)value);
    default:
        return __builtin_bswap64(value);
    }
}

/* A 16-bit BSWAP is undefined: processors write zero. */
static void bswap_2(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    reg_write(cpu, insn->dst, 2, 0);
}

#define BSWAP_HANDLERS(n)                                                                          \
    static void movbe_rm_##n(struct x86_cpu *cpu, const struct x86_insn *insn)                     \
    {                                                                                              \
        reg_write(cpu, insn->dst, n, swap_bytes(mem_load(cpu, insn, n), n));                       \
    }                                                                                              \
    static void movbe_mr_##n(struct x86_cpu *cpu, const struct x86_insn *insn)                     \
    {                                                                                              \
        mem_store(cpu, insn, n, swap_bytes(reg_read(cpu, insn->dst, n), n));                       \
    }
BSWAP_HANDLERS(2);
BSWAP_HANDLERS(4);
BSWAP_HANDLERS(8);

static void bswap_4(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    reg_write(cpu, insn->dst, 4, swap_bytes(reg_read(cpu, insn->dst, 4), 4));
}

static void bswap_8(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    reg_write(cpu, insn->dst, 8, swap_bytes(reg_read(cpu, insn->dst, 8), 8));
}

static bool bind_bswap(const struct x86_decode *d, struct x86_insn *out)
{
    out->run = out->size == 2 ? bswap_2 : out->size == 8 ? bswap_8 : bswap_4;
    return true;
}

static bool bind_movbe(const struct x86_decode *d, struct x86_insn *out)
{
    static x86_handler *const rm[] = {movbe_rm_2, movbe_rm_4, movbe_rm_8}, *const mr[] = {
                                                                               movbe_mr_2,
                                                                               movbe_mr_4,
                                                                               movbe_mr_8};
    out->run = (is_mem(d, 0) ? mr : rm)[size_index(out->size) - 1];
    return true;
}

/* --- the accumulator --- */

static void xlat(struct x86_cpu *cpu, const struct x86_insn *insn)
{
    uint64_t offset = cpu->s.gpr[X86_RBX] + (uint8_t)cpu->s.gpr[X86_RAX];
    offset &= size_mask(insn->address_size);
    gpr_write(cpu, X86_RAX, 1, x86_load(cpu, x86_linear(cpu, insn->seg, offset, 1, X86_READ), 1));
}

static bool bind_xlat(const struct x86_decode *d, struct x86_insn *out)
{
    /* The memory operand is a hidden one: take its segment from there. */
    for (unsigned i = 0; i < d->z->operand_count; i++)
        if (is_mem(d, i))
            out->seg = x86_segment_number(d->op[i].mem.segment);
    out->run = xlat;
    return true;
}

#define CONVERT(name, from, to)                                                                    \
    static void name(struct x86_cpu *cpu, const struct x86_insn *insn)                             \
    {                                                                                              \
        gpr_write(cpu, X86_RAX, to, sign_extend(gpr_read(cpu, X86_RAX, from), from));              \
    }                                                                                              \
    static bool bind_##name(const struct x86_decode *d, struct x86_insn *out)                      \
    {                                                                                              \
        out->run = name;                                                                           \
        return true;                                                                               \
    }
CONVERT(cbw, 1, 2);
CONVERT(cwde, 2, 4);
CONVERT(cdqe, 4, 8);

#define SPREAD(name, n)                                                                            \
    static void name(struct x86_cpu *cpu, const struct x86_insn *insn)                             \
    {                                                                                              \
        bool negative = gpr_read(cpu, X86_RAX, n) >> (8 * n - 1);                                  \
        gpr_write(cpu, X86_RDX, n, negative ? ~0ull : 0);                                          \
    }                                                                                              \
    static bool bind_##name(const struct x86_decode *d, struct x86_insn *out)                      \
    {                                                                                              \
        out->run = name;                                                                           \
        return true;                                                                               \
    }
SPREAD(cwd, 2);
SPREAD(cdq, 4);
SPREAD(cqo, 8);

const struct x86_bind x86_bind_move[] = {
    {ZYDIS_MNEMONIC_MOV, bind_mov},      {ZYDIS_MNEMONIC_MOVNTI, bind_movnti},
    {ZYDIS_MNEMONIC_MOVZX, bind_movzx},  {ZYDIS_MNEMONIC_MOVSX, bind_movsx},
    {ZYDIS_MNEMONIC_MOVSXD, bind_movsx}, {ZYDIS_MNEMONIC_LEA, bind_lea},
    {ZYDIS_MNEMONIC_XCHG, bind_xchg},    {ZYDIS_MNEMONIC_PAUSE, bind_pause},
    {ZYDIS_MNEMONIC_CMOVO, bind_cmov},   {ZYDIS_MNEMONIC_CMOVNO, bind_cmov},
    {ZYDIS_MNEMONIC_CMOVB, bind_cmov},   {ZYDIS_MNEMONIC_CMOVNB, bind_cmov},
    {ZYDIS_MNEMONIC_CMOVZ, bind_cmov},   {ZYDIS_MNEMONIC_CMOVNZ, bind_cmov},
    {ZYDIS_MNEMONIC_CMOVBE, bind_cmov},  {ZYDIS_MNEMONIC_CMOVNBE, bind_cmov},
    {ZYDIS_MNEMONIC_CMOVS, bind_cmov},   {ZYDIS_MNEMONIC_CMOVNS, bind_cmov},
    {ZYDIS_MNEMONIC_CMOVP, bind_cmov},   {ZYDIS_MNEMONIC_CMOVNP, bind_cmov},
    {ZYDIS_MNEMONIC_CMOVL, bind_cmov},   {ZYDIS_MNEMONIC_CMOVNL, bind_cmov},
    {ZYDIS_MNEMONIC_CMOVLE, bind_cmov},  {ZYDIS_MNEMONIC_CMOVNLE, bind_cmov},
    {ZYDIS_MNEMONIC_SETO, bind_set},     {ZYDIS_MNEMONIC_SETNO, bind_set},
    {ZYDIS_MNEMONIC_SETB, bind_set},     {ZYDIS_MNEMONIC_SETNB, bind_set},
    {ZYDIS_MNEMONIC_SETZ, bind_set},     {ZYDIS_MNEMONIC_SETNZ, bind_set},
    {ZYDIS_MNEMONIC_SETBE, bind_set},    {ZYDIS_MNEMONIC_SETNBE, bind_set},
    {ZYDIS_MNEMONIC_SETS, bind_set},     {ZYDIS_MNEMONIC_SETNS, bind_set},
    {ZYDIS_MNEMONIC_SETP, bind_set},     {ZYDIS_MNEMONIC_SETNP, bind_set},
    {ZYDIS_MNEMONIC_SETL, bind_set},     {ZYDIS_MNEMONIC_SETNL, bind_set},
    {ZYDIS_MNEMONIC_SETLE, bind_set},    {ZYDIS_MNEMONIC_SETNLE, bind_set},
    {ZYDIS_MNEMONIC_BSWAP, bind_bswap},  {ZYDIS_MNEMONIC_MOVBE, bind_movbe},
    {ZYDIS_MNEMONIC_XLAT, bind_xlat},    {ZYDIS_MNEMONIC_CBW, bind_cbw},
    {ZYDIS_MNEMONIC_CWDE, bind_cwde},    {ZYDIS_MNEMONIC_CDQE, bind_cdqe},
    {ZYDIS_MNEMONIC_CWD, bind_cwd},      {ZYDIS_MNEMONIC_CDQ, bind_cdq},
    {ZYDIS_MNEMONIC_CQO, bind_cqo},      X86_BIND_END,
};
