/*
 * The translator: guest code to host code, a unit at a time. Same instruction set on both sides: a
 * unit is the guest's own instructions with registers renamed, memory operands translated by an
 * inline look into the software TLB, and branches made to stay inside the code memory. What it does
 * not know, and what misses, is done by the interpreter's handler of that instruction, with the
 * whole guest state in struct x86_cpu. See docs/soft-engine.md.
 *
 * x86/ maps nothing: the caller provides code memory, seen twice (stub.h). One translator belongs
 * to one struct x86_cpu and is used on its thread only.
 *
 * While host code runs RSP is the address of struct x86_cpu: X86_TRANSLATE_HEADROOM bytes below it
 * must be writable memory (return addresses, and frames of the host's signal handlers).
 *
 * Only bytes that the decoder has decoded become host instructions, put together anew from their
 * fields.
 */
#ifndef PARAT_X86_TRANSLATE_H
#define PARAT_X86_TRANSLATE_H

#include "x86/cpu.h"
#include "x86/insn.h"
#include "x86/stub.h"

#define X86_TRANSLATE_HEADROOM (64u << 10)
/* At least so much code memory is needed. */
#define X86_TRANSLATE_MEMORY_MIN (64u << 10)
#define X86_UNIT_INSNS_MAX       64u

struct x86_translator;

/*
 * One translation. Lies where the caller wants it (x86_unit_size); dead once its code memory is
 * reset.
 */
struct x86_unit {
    uint64_t page;        /* the caller's: where it comes from */
    const uint8_t *enter; /* RAX: RIP; flags in memory */
    uint8_t *chain[2]; /* writable view: for jumps within the page; flags in memory, in the host */
    uint16_t bytes;    /* of guest code, from the unit's first on */
    uint8_t count;     /* guest instructions */
    uint8_t mode;
    uint16_t page_offset;
    uint8_t *guard_key,
        *guard_page;        /* writable view, for x86_unit_admit; NULL: stays in its page */
    struct x86_insn insn[]; /* those that may need their handlers; with `alone` all */
};

struct x86_translator_config {
    struct x86_stub_memory memory;
    const struct x86_decoder *decoder;
    const struct x86_features *features;
    size_t
        attention; /* offset from struct x86_cpu to a 64-bit word: 0, or host code is to return */
    /* Each unit returns after it has run: nothing is chained. It keeps all its instructions. */
    bool alone;
};

/* The host has what translated code needs; otherwise *why says what is missing. */
bool x86_translate_possible(const char **why);
int x86_translator_create(struct x86_translator **out,
                          const struct x86_translator_config *config) MUST_USE;
void x86_translator_destroy(struct x86_translator *translator);
/* Forgets all units; none is running. */
void x86_translator_reset(struct x86_translator *translator, struct x86_cpu *cpu);
size_t x86_translator_used(const struct x86_translator *translator); /* bytes of code memory */

/*
 * What a unit is made for beside its bytes: X86_UNIT_NONE, or a number below X86_UNIT_MODES. A unit
 * may run only while the CPU is in its mode.
 */
#define X86_UNIT_NONE  0xffu
#define X86_UNIT_MODES 8u
uint8_t x86_unit_mode(const struct x86_cpu *cpu);

/* Where a unit's guest code is. */
struct x86_unit_code {
    uint8_t mode;
    bool plain;   /* make it without groups, see translate_group.c */
    bool crosses; /* make it of one instruction only, which goes on in the next page */
    /* Near where addresses stop being canonical: a branch out of the page may have to raise #GP. */
    bool edge;
    unsigned page_offset;
    const uint8_t *bytes;
    unsigned available;
    /* Whether to go on at this offset, behind a conditional branch; NULL: yes. */
    bool (*follow)(void *context, unsigned page_offset);
    void *context;
};

/* Step 1: decodes; returns how many bytes a unit from there would cover, 0: none can be made. */
unsigned x86_translate_scan(struct x86_translator *translator, const struct x86_unit_code *code);
/* Step 2: the bytes needed for struct x86_unit of what was scanned. */
size_t x86_unit_size(const struct x86_translator *translator);
/* Step 3: makes the unit of what was scanned. False: code memory is full. */
bool x86_unit_make(struct x86_translator *translator, struct x86_unit *unit);

/* How host code came back. */
struct x86_unit_exit {
    uint8_t *link;   /* a jump that can lead straight to the unit at RIP (x86_unit_link), or NULL */
    bool host_flags; /* which way into it */
    const struct x86_unit *from;
    uint8_t mode; /* in which it left */
    bool plain;   /* RIP is to be run by a unit without groups */
    bool lookup;  /* RIP was perhaps not in the jump cache: x86_unit_note */
    /* A jump to another page that can be linked (x86_unit_link_far), or NULL; and while what it is
     * good for. */
    struct x86_far {
        uint8_t *key, *page, *jump;
    } far;
    uint64_t key, page_base;
};

/*
 * Runs the unit and what is chained to it; all state is in the CPU before and after, between two
 * instructions. May raise.
 */
void x86_unit_run(struct x86_translator *translator, struct x86_cpu *cpu,
                  const struct x86_unit *unit, struct x86_unit_exit *out);
/* Makes the jump of an exit lead to the unit; same page, same mode. */
void x86_unit_link(const struct x86_unit_exit *exit, const struct x86_unit *unit);
/* Makes a jump to another page lead to the unit, which x86_unit_note has noted under the key. */
void x86_unit_link_far(const struct x86_translator *translator, const struct x86_unit_exit *exit,
                       const struct x86_unit *unit);
/* Before a unit runs: in which mode and code space the jump cache is used from now on. */
void x86_unit_choose_key(struct x86_translator *translator, struct x86_cpu *cpu, uint8_t mode);
/*
 * Before a unit that crosses into the next page is run at the present RIP, by whatever way: the
 * caller has looked that page up in the TLB for execution and found the one that the unit was made
 * of. False: it cannot be told for how long that holds, and the unit must not run.
 */
bool x86_unit_admit(struct x86_translator *translator, struct x86_cpu *cpu,
                    const struct x86_unit *unit) MUST_USE;
/* Enters the unit at the present RIP into the jump cache. False: its page is mapped in an unusual
 * way, and not noted. */
bool x86_unit_note(struct x86_cpu *cpu, const struct x86_unit *unit);
/* The guest code of the unit has changed: whoever jumps there comes back to the caller. False: code
 * memory is full, everything must be dropped. */
bool x86_unit_drop(struct x86_translator *translator, struct x86_unit *unit);

#endif
