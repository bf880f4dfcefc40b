/*
 * What the translator's modules share. See translate.h and docs/soft-engine.md.
 */
#ifndef PARAT_X86_TRANSLATE_INT_H
#define PARAT_X86_TRANSLATE_INT_H

#include <Zydis/Zydis.h>

#include "x86/decode_int.h"
#include "x86/emit.h"
#include "x86/mem.h"
#include "x86/translate.h"

/*
 * Where guest registers are while host code runs. Scratch: RAX (LAHF and SAHF want it), R14, R15.
 * Four guest registers stay in memory, [rsp + 8n].
 */
enum { T0 = HOST_RAX, T1 = HOST_R14, T2 = HOST_R15 };
extern const uint8_t x86_host_of[16]; /* HOST_NONE: in memory */

#define FLAGS_ALL ((uint32_t)X86_STATUS_FLAGS)

#define CPU_OFFSET(field) ((int32_t)offsetof(struct x86_cpu, field))

static inline struct x86_rm x86_cpu_field(int32_t offset)
{
    return x86_rm_mem(HOST_RSP, offset);
}

static inline struct x86_rm x86_gpr_home(unsigned gpr)
{
    return x86_cpu_field(CPU_OFFSET(s.gpr) + 8 * (int32_t)gpr);
}

/* How an instruction is translated. */
enum x86_kind {
    KIND_HANDLER, /* by the interpreter */
    KIND_NOP,
    KIND_GENERIC,     /* registers renamed, memory operand probed */
    KIND_ACCUMULATOR, /* op AL/eAX, imm without ModRM */
    KIND_MOV_IMM,
    KIND_BSWAP,
    KIND_XCHG_RAX,
    KIND_IMPLICIT, /* no explicit operands: CBW, CQO… */
    KIND_LEA,
    KIND_DIV,
    KIND_PUSH,
    KIND_POP,
    KIND_LEAVE,
    KIND_JCC,
    KIND_JMP,
    KIND_CALL,
    KIND_RET,
    KIND_JMP_INDIRECT,
    KIND_CALL_INDIRECT,
    KIND_VECTOR,
    KIND_LOOP, /* LOOP, LOOPE, LOOPNE, JRCXZ */
    /* translate_system.c */
    KIND_HIGH_BYTE,  /* AH to BH are among the operands */
    KIND_FLAGS_AH,   /* LAHF, SAHF */
    KIND_RFLAGS_BIT, /* CLI, CLD, STD */
    KIND_STI,
    KIND_PUSHF,
    KIND_POPF,
    KIND_SWAPGS,
    KIND_FROM_SEGMENT,
    KIND_BIT_STRING, /* BT, BTS, BTR, BTC in memory, number in a register */
    KIND_STRING,     /* MOVS, STOS, LODS without REP */
    KIND_REP_STRING, /* MOVS, STOS with it */
    KIND_AC,         /* STAC, CLAC */
    KIND_FROM_CR,
    KIND_READ_BASE, /* RDFSBASE, RDGSBASE */
    KIND_WRITE_BASE,
    KIND_PAUSE,
};

/* A general register operand: its number and what happens to it; size in bytes, 0: none. */
struct x86_gpr_use {
    uint8_t gpr, size;
    bool read, written;
};

/* One guest instruction on its way. */
struct x86_source {
    ZydisDecodedInstruction z;
    ZydisDecodedOperand op[ZYDIS_MAX_OPERAND_COUNT];
    struct x86_insn insn;
    const uint8_t *bytes;
    uint16_t offset; /* in the page */
    uint8_t kind;    /* enum x86_kind */
    uint8_t group;   /* 0, or 1 + index of its group */
    int64_t group_offset;
    bool faults;  /* may leave to the interpreter: all flags must be to be had */
    uint8_t kept; /* its place in the unit's insn[], when it may */
    struct x86_gpr_use reg, rm, vvvv; /* by the encoding's fields */
    const ZydisDecodedOperand *mem;
    bool mem_write;
    bool rax_read, rax_written; /* without being encoded */
    uint32_t flags_read, flags_written, flags_undefined;
    uint32_t live_after; /* flags that somebody may look at */
};

/* Where the guest's status flags are. */
enum x86_flags_state {
    FLAGS_HOST = 1, /* in the host's */
    FLAGS_MEMORY = 2,
    FLAGS_BOTH = 3,
    FLAGS_NOWHERE = 4, /* to be made again by whoever needs them, see translate_flags.c */
};
#define FLAGS_NO_MAKER 0xffu

/* Memory operands that share a probe. Offsets count from where their registers point at first. */
#define X86_GROUPS_MAX 16
struct x86_group {
    int64_t min, max;
    uint8_t members, leader; /* its instruction */
    bool write;
};

/* Out of line: what happens when a probe misses. */
struct x86_slow {
    uint8_t *link; /* the jump that goes there */
    const uint8_t *resume;
    uint16_t index; /* of the instruction */
    bool group;     /* a group's probe; resume: tries again */
    bool remake;    /* flags were FLAGS_NOWHERE */
    uint8_t maker;
};

#define SLOW_MAX  (X86_UNIT_INSNS_MAX * 6) /* REP MOVS has so many */
#define EXITS_MAX (X86_UNIT_INSNS_MAX * 2 + 4)

/* Out of line: a way out of the unit at a known place of its page. */
struct x86_way_out {
    uint8_t *link;  /* the jump that goes there */
    int16_t offset; /* of RIP in the page */
    bool host_flags;
    bool may_link; /* that jump may later lead straight to the unit there */
};

struct x86_translation {
    struct x86_translator *tr;
    struct x86_emit e;
    struct x86_unit *unit;
    struct x86_source *source; /* of the present instruction */
    unsigned index;
    uint8_t flags; /* enum x86_flags_state */
    uint8_t
        flags_maker;  /* the instruction that has left all of them in the host, or FLAGS_NO_MAKER */
    uint8_t mode;     /* the unit's, until STAC or CLAC changes it */
    uint8_t t1_group; /* T1 holds the start of that group (1 + index), or 0 */
    bool ended;       /* the present instruction does not go on to the next */
    bool window;      /* interrupts may be taken behind the next instruction */
    uint8_t *body;
    unsigned slow_count, out_count;
    struct x86_slow slow[SLOW_MAX];
    struct x86_way_out out[EXITS_MAX];
};

/* Follows a call of the common routines in code memory. */
struct __attribute__((packed)) x86_site {
    uint8_t kind; /* enum x86_site_kind */
    uint8_t host_flags;
    int16_t offset; /* RIP in the page */
    int32_t link;   /* from here to the jump's distance, or to where to go on */
    union {
        const struct x86_insn *insn; /* SITE_CALL */
        struct x86_unit *unit;       /* SITE_LINK, SITE_GROUP: that one */
        struct {
            uint8_t page, jump; /* SITE_FAR: from its key to the other fields of struct x86_far */
        };
    };
};

/* Follows the site of a SITE_GROUP. */
struct __attribute__((packed)) x86_group_site {
    int32_t plain; /* from the site to the distance of the jump for ranges that cross a page */
    uint16_t span; /* bytes at RAX */
    bool write;
};

enum x86_site_kind { SITE_CALL, SITE_RESUME, SITE_LINK, SITE_LOOKUP, SITE_FAR, SITE_GROUP };

/* Common routines in code memory, one set for units with vectors in memory and one for those in the
 * host's registers. */
struct x86_routines {
    const uint8_t *enter; /* C: (cpu, where) */
    uint8_t *call;        /* runs a handler, reached by CALL, followed by a site */
    uint8_t *leave;       /* back to C, ditto */
    uint8_t *lookup;      /* RAX is RIP: on by the jump cache, or else leave_rip */
    uint8_t *leave_rip;   /* back to C, RAX is RIP */
    uint8_t *group;       /* a group's probe has missed, RAX is the address */
};

/* Keys of the jump cache by mode and code space, the most recent ones. */
#define X86_KNOWN_KEYS 64
struct x86_known_key {
    uint64_t key;
    uint32_t space;
    uint8_t mode;
};

struct x86_translator {
    struct x86_translator_config config;
    uint8_t *at;    /* next free byte, writable view */
    uint8_t *start; /* behind the common routines */
    struct x86_routines routines[2];
    bool has_bmi2;
    uint8_t mode;         /* of what was scanned */
    unsigned count;       /* instructions scanned */
    unsigned kept;        /* of them may need their handlers */
    unsigned page_offset; /* of the first */
    unsigned bytes;
    uint64_t last_key; /* given out */
    unsigned known_count;
    struct x86_known_key known[X86_KNOWN_KEYS];
    struct x86_known_key present[X86_UNIT_MODES]; /* used last in each mode */
    uint32_t wraps;                               /* code_space_wraps seen last */
    bool plain;                                   /* without groups */
    bool crosses;
    unsigned group_count;
    struct x86_group group[X86_GROUPS_MAX];
    struct x86_source source[X86_UNIT_INSNS_MAX];
    struct x86_translation work;
};

/* Unit modes: which TLB table, and whether vector registers live in the host's. */
static inline enum x86_mmu x86_mode_mmu(uint8_t mode)
{
    return (enum x86_mmu)(mode & 3);
}

static inline bool x86_mode_vector(uint8_t mode)
{
    return mode & 4;
}

/* --- translate.c --- */

bool x86_ends_unit(const struct x86_source *s);
/* Goes elsewhere without having looked for attention. */
bool x86_jumps_in_unit(const struct x86_source *s);

/* --- translate_flags.c --- */

/* Which flags may be looked at after each instruction. */
void x86_flags_find_live(struct x86_translator *tr);
void x86_emit_flags_save(struct x86_emit *e); /* to memory; uses T0 */
void x86_emit_flags_load(struct x86_emit *e);
/* To memory, for a slow path of an instruction that began with FLAGS_NOWHERE. Uses T0. */
void x86_emit_flags_remade(struct x86_translation *t, unsigned maker);
/* Host flags are about to be lost: sees that they can be had if somebody may still look. Uses T0.
 */
void x86_flags_lose(struct x86_translation *t);
/* The same, and they are in memory then: for who leaves the unit or calls a handler. Uses T0. */
void x86_flags_spill(struct x86_translation *t);
/* The instruction needs the guest's flags in the host's. Uses T0. */
void x86_flags_want(struct x86_translation *t);
/* Flags that the instruction reads, or leaves to be read after it. */
static inline bool x86_wants_flags(const struct x86_source *s)
{
    return s->flags_read ||
           ((s->flags_written | s->flags_undefined) && (s->live_after & ~s->flags_written));
}
/* The instruction has written flags. */
static inline void x86_flags_changed(struct x86_translation *t)
{
    t->flags = FLAGS_HOST;
    t->flags_maker = (uint8_t)t->index;
}

/* --- translate.c --- */

/* Calls the interpreter's handler, in line. */
void x86_translate_by_handler(struct x86_translation *t);
/* A jump (its distance at link) that is taken when the instruction must be done by its handler. */
void x86_slow_path(struct x86_translation *t, uint8_t *link);
/* Leaves for a place of this page; link: the jump to make go there. */
void x86_leave_to(struct x86_translation *t, uint8_t *link, int offset, bool may_link);
/* Leaves for an offset outside the page, straight once linked. Flags are spilled before. */
void x86_leave_far(struct x86_translation *t, int64_t offset);
/*
 * Looks for the address in T0 in the jump cache; misses, attention among them, are for the
 * instruction's handler. Returns where the entry's host address is. Uses T1, T2; T1 is part of the
 * result. Clobbers flags.
 */
struct x86_rm x86_emit_jump_lookup(struct x86_translation *t);
/* T = linear address of `offset` in the unit's page. */
void x86_emit_rip(struct x86_translation *t, unsigned to, int32_t offset);

/* --- translate_operand.c --- */

void x86_source_classify(struct x86_source *s, uint8_t mode);
/* Notes what an operand says of general registers, RAX and memory. False: not known. */
bool x86_source_use(struct x86_source *s, const ZydisDecodedOperand *op);
/* Number and size of a general register; false for AH, BH, CH, DH and what is none. */
bool x86_gpr_of(ZydisRegister reg, unsigned *gpr, unsigned *size);
/* The linear address of the memory operand in a register, T0 or a guest's own. Clobbers flags only
 * where a segment has a base. Uses T0, T1. */
unsigned x86_emit_address(struct x86_translation *t, const ZydisDecodedOperandMem *mem);
/*
 * The host operand for `size` bytes at the linear address in register la (not T1, T2), which stays;
 * uses T1, T2; T1 is part of the result. Clobbers flags. aligned: must be.
 */
struct x86_rm x86_emit_probe(struct x86_translation *t, unsigned la, unsigned size, bool write,
                             bool aligned);
/* Its first part: not equal means a miss; else the result is where the addend is. */
struct x86_rm x86_emit_tlb_compare(struct x86_translation *t, unsigned la, unsigned size,
                                   bool write, bool aligned);
/* A memory operand must be aligned to its size, or else be left to the handler. */
bool x86_needs_alignment(const struct x86_source *s);
/* A member of a group that cannot fault then. */
bool x86_only_memory_faults(const struct x86_source *s);
/* Number of a general register; false: it is none, or AH to BH. */
bool x86_gpr_number(ZydisRegister reg, unsigned *gpr);
/* The host register of a guest's, loaded into scratch if it lives in memory. */
unsigned x86_gpr_in(struct x86_translation *t, unsigned gpr, unsigned scratch);
/* Writes it home if it lives in memory. */
void x86_gpr_out(struct x86_translation *t, unsigned gpr, unsigned host);

/* The host instruction with the same opcode, without operands. */
struct x86_encoding x86_encoding_of(const struct x86_source *s);
void x86_emit_immediates(struct x86_translation *t);

/* --- translate_group.c --- */

/* Which memory operands share a probe; sets faults of those that cannot any more. */
void x86_groups_form(struct x86_translator *tr);
/*
 * The host operand of the instruction's memory operand, alone or as member of its group. Spills
 * flags if it must. Uses T0, T1, T2; afterwards T1 is part of the operand, T0 may be, T2 is free.
 */
struct x86_rm x86_emit_memory(struct x86_translation *t, bool aligned);
/* The same for 8 bytes at the guest's stack pointer (or frame pointer) + offset; with an offset it
 * is a push. T0 is free afterwards unless part of the operand. */
struct x86_rm x86_emit_stack(struct x86_translation *t, unsigned gpr, int offset);
/* After an instruction: T1 may no longer be what t1_group says. */
void x86_group_forget_scratch(struct x86_translation *t);
/* A jump that is taken when a group cannot be had; retry: where to try again. */
void x86_group_miss(struct x86_translation *t, uint8_t *link, const uint8_t *retry);

/* --- translate_integer.c, translate_branch.c, …: by kind --- */

void x86_translate_integer(struct x86_translation *t);
void x86_translate_branch(struct x86_translation *t);
bool x86_vector_needs_alignment(const struct x86_source *s);
/* Leaves for `offset` in the page if the caller is to look at something. Clobbers flags, which are
 * in memory. */
void x86_emit_attention_check(struct x86_translation *t, int offset);
/* The kind of an instruction that is not of the usual ones; s->kind: what it might have been. */
uint8_t x86_system_classify(struct x86_source *s, uint8_t mode);
void x86_translate_system(struct x86_translation *t);
/* The mode behind the instruction, which began in `mode`. */
uint8_t x86_mode_behind(const struct x86_source *s, uint8_t mode);
/* An address in T0 that is not canonical is for the handler: bits 63 to 47 are not all the same.
 * Uses T1. */
void x86_emit_canonical_check(struct x86_translation *t);
/* Behind the instruction that follows STI. */
void x86_emit_window(struct x86_translation *t);
bool x86_vector_classify(struct x86_source *s); /* may be KIND_VECTOR */
void x86_translate_vector(struct x86_translation *t);

/* --- translate_runtime.c --- */

bool x86_routines_make(struct x86_translator *tr);
/*
 * The look into the jump cache for the address in T0, with RSP `pushed` bytes below the CPU: jumps
 * that are taken on a miss, and where the host address is.
 */
struct x86_rm x86_emit_jump_compare(struct x86_emit *e, size_t attention, int32_t pushed,
                                    uint8_t *miss[2]);
void x86_jump_cache_clear(struct x86_translator *tr, struct x86_cpu *cpu);

static inline const uint8_t *x86_executable(const struct x86_translator *tr, const uint8_t *at)
{
    return tr->config.memory.execute + (at - tr->config.memory.write);
}

static inline uint8_t *x86_writable(const struct x86_translator *tr, const uint8_t *at)
{
    return tr->config.memory.write + (at - tr->config.memory.execute);
}

#endif
