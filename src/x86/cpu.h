/*
 * The working CPU: the portable state, what is derived from it, the software TLB and the way to the
 * world around (struct x86_ops). One thread at a time owns it.
 *
 * Rule: whoever changes CR0, CR3, CR4, EFER, RFLAGS.VM/AC/TF/RF, DR7, CS, SS, a segment's hidden
 * part or a privilege level calls x86_cpu_update_mode (system.c/segment.c do; POPF when AC, TF or
 * RF changed); x86_cpu_set_state does it for all.
 *
 * CPL is the DPL in SS's attributes, as the hardware has it (0 in real mode, 3 in virtual-8086).
 */
#ifndef PARAT_X86_CPU_H
#define PARAT_X86_CPU_H

#include <setjmp.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/addr.h"
#include "x86/cpuid.h"
#include "x86/insn.h"
#include "x86/state.h"

struct x86_tlb_page;

enum x86_access { X86_READ = 0, X86_WRITE = 1, X86_EXEC = 2 };

/* Which TLB table an access uses. */
enum x86_mmu {
    X86_MMU_USER,        /* CPL 3 */
    X86_MMU_KERNEL,      /* supervisor, user pages refused (SMAP on, AC clear) */
    X86_MMU_KERNEL_USER, /* supervisor, user pages allowed (SMAP off, or AC set) */
    X86_MMU_ALIGNED,     /* CPL 3 with alignment checks: no data entries, all go the slow way */
    X86_MMU_COUNT
};

/* What x86/ needs of its surroundings. Called on the CPU's thread. None may longjmp, unless
 * the whole CPU is thrown away after it. */
struct x86_ops {
    /*
     * Host address of the guest-physical page, for direct access, or NULL when it is not plain RAM.
     * *writable: in: whether the guest is about to write; out: whether direct writes are allowed
     * (false on a page with decoded code: each store then goes through store_begin/end; false on
     * ROM).
     */
    uint8_t *(*page)(void *context, gpa_t page, bool *writable);
    /*
     * Brackets a store to RAM that may not be written directly. begin returns the host address to
     * write to (length bytes inside one page), or NULL when the store is to be dropped (ROM).
     * end drops decoded code made from these bytes, and sets cpu->end_block when it was ours.
     */
    uint8_t *(*store_begin)(void *context, gpa_t address, unsigned length);
    void (*store_end)(void *context, gpa_t address, unsigned length);

    uint64_t (*mmio_read)(void *context, gpa_t address, unsigned size);
    void (*mmio_write)(void *context, gpa_t address, unsigned size, uint64_t value);
    uint32_t (*pio_read)(void *context, uint16_t port, unsigned size);
    void (*pio_write)(void *context, uint16_t port, unsigned size, uint32_t value);

    /* All other vCPUs stand at a safe point between begin and end. For split locks. */
    void (*exclusive_begin)(void *context);
    void (*exclusive_end)(void *context);

    /* TSC ticks of VM time, without the guest's offset. */
    uint64_t (*tsc)(void *context);
    void (*tsc_changed)(void *context); /* s.tsc_offset did; may be NULL */
    /* The CPU has executed X86_PAUSES_TO_YIELD PAUSEs since the last call; may be NULL. */
    void (*yield)(void *context);
    /* MSRs that x86/msr.c does not hold (APIC, kvmclock, …). False: #GP. */
    bool (*msr_read)(void *context, uint32_t index, uint64_t *value);
    bool (*msr_write)(void *context, uint32_t index, uint64_t value);
    /* CR8 is the APIC's task priority. */
    uint64_t (*cr8_read)(void *context);
    void (*cr8_write)(void *context, uint64_t value);
    bool (*random)(void *context, uint64_t *value); /* RDRAND, RDSEED */
    /*
     * Optional: asked before a walk what another TLB knows of this page (x86_tlb_peek). A second
     * CPU that repeats what the first one does must see the same stale entries.
     */
    bool (*tlb_peek)(void *context, uint64_t la, enum x86_access access, enum x86_mmu mmu,
                     struct x86_tlb_page *page);
};

/* A spin of ordinary length stays below it. */
#define X86_PAUSES_TO_YIELD 256

/* Of the index, la >> 12 & (X86_TLB_SIZE - 1). A Debian boot to a login and its commands: 2.1
 * million fills with 1024 entries, 1.4 with 2048, 0.9 with 4096. */
#define X86_TLB_BITS  12
#define X86_TLB_SIZE  (1u << X86_TLB_BITS)
#define X86_TLB_EMPTY 0x800ull /* is no page address, nor one with low bits of an unaligned one */

/*
 * An access hits when its page address equals the tag of its kind. Generated code knows this
 * layout; what only C needs of a page stands in the book.
 */
struct x86_tlb_entry {
    uint64_t read, write, exec; /* linear page address, or X86_TLB_EMPTY */
    uintptr_t addend;           /* host address = linear address + addend */
};
_Static_assert(sizeof(struct x86_tlb_entry) == 32, "two in a cache line, index by a shift of 5");

/*
 * The second level: pages of RAM as the walk found them, for all kinds of access and for several
 * address spaces. An entry is of the space whose number it has.
 */
#define X86_TLB_SETS 512u
#define X86_TLB_WAYS 4u

struct x86_tlb_page {
    uint64_t la, gpa; /* page addresses */
    uint8_t *host;
    uint32_t space;     /* 0: no entry */
    uint16_t grant;     /* direct writes are allowed while this is book.grant */
    uint8_t page_shift; /* of the guest's page: 12, 21, 22, 30 */
    bool user : 1, write : 1, exec : 1, global : 1;
    bool dirty : 1; /* D is set in the leaf (or paging is off) */
};
_Static_assert(sizeof(struct x86_tlb_page) == 32, "two in a cache line");

/*
 * What walks leave behind, as such a page with la its region's address: host is the host address of
 * the page table that maps the region, and the rights are those of the levels above; or host is
 * NULL and the region lies in a large page at gpa. `space` is a space's `tables`.
 */
#define X86_TLB_REGION_SHIFT 21u
#define X86_TLB_REGIONS      256u

/* The spaces: the global translations, and those of each PCID that was used lately. */
#define X86_TLB_GLOBAL       0u
#define X86_TLB_SPACES       9u
#define X86_TLB_FILTER_WORDS 256u

struct x86_tlb_space {
    uint32_t number; /* in the second level; 0: the space is free */
    uint32_t tables; /* of the regions */
    uint32_t code;   /* what code_space is while this space is the present one */
    uint16_t pcid;
    bool noted;                            /* some page of code, since `code` began */
    uint8_t noted_sizes;                   /* bit n: of a large page of size class n + 1 */
    uint64_t last_use;                     /* book.switches then */
    uint64_t filter[X86_TLB_FILTER_WORDS]; /* which pages, see tlb_space.c */
};

/*
 * What tlb.c notes beside the entries, so that a flush costs as much as the fills before it and not
 * as much as the table: lists of the slots in use, global and not.
 */
struct x86_tlb_book {
    uint64_t gpa[X86_MMU_COUNT][X86_TLB_SIZE];  /* guest-physical page addresses */
    uint8_t flags[X86_MMU_COUNT][X86_TLB_SIZE]; /* TLB_*, tlb.h */
    uint16_t list[2][X86_MMU_COUNT * X86_TLB_SIZE];
    unsigned count[2];
    uint64_t large[16]; /* filter: regions that large pages were used in, see tlb.c */
    uint16_t grant;     /* changes when a page loses its direct writers */
    unsigned present;   /* index of the present space */
    uint32_t last_number;
    uint64_t switches;
    struct x86_tlb_space space[X86_TLB_SPACES];
    bool unusual[2]; /* [0]: the second level has global pages below; [1]: others above */
    uint8_t turn[X86_TLB_SETS]; /* the way that is replaced next */
    struct x86_tlb_page region[X86_TLB_REGIONS];
    _Alignas(64) struct x86_tlb_page second[X86_TLB_SETS][X86_TLB_WAYS];
};

/*
 * What translated code keeps beside the registers (translate.h). jump_*: the jump cache, from RIP
 * in a mode and code space (which a key stands for) to host code.
 */
#define X86_JUMP_BITS 15
#define X86_JUMP_SIZE (1u << X86_JUMP_BITS)

struct x86_jump {
    uint64_t rip;
    uint64_t key; /* 0: empty */
    uintptr_t entry;
    uint64_t unused;
};
_Static_assert(sizeof(struct x86_jump) == 32, "two in a cache line, index by a mask");

struct x86_host_code {
    uint64_t page_base; /* linear address of the page that is being executed */
    uint64_t jump_now;  /* key of the present mode and code space; even, never 0 */
    uint64_t jump_kernel, jump_kernel_user; /* those of these modes, while in one of them */
    uint64_t temp, temp2;
    uint64_t group[16];  /* host addresses, see translate_group.c */
    bool plain;          /* a group could not be had at RIP */
    uint64_t c_stack;    /* RSP of the C code that entered */
    const uint8_t *site; /* where host code called a common routine last */
    struct x86_translator *translator;
    uint16_t flags; /* status flags as LAHF and SETO leave them in AX */
    uint8_t mode;   /* of the unit that runs */
    uint32_t mxcsr;
    uint64_t handlers, probe_misses; /* counters: calls of the interpreter from host code */
    _Alignas(64) struct x86_jump jump[X86_JUMP_SIZE];
};

struct x86_cpu {
    struct x86_state s; /* first: translated code reaches the general registers by short offsets */

    /* Beside the registers, for insn.base/index: always zero; the next instruction's address. */
    uint64_t zero;
    uint64_t next_rip;

    /* Derived by x86_cpu_update_mode */
    uint8_t code_size;  /* 2, 4, 8 */
    uint8_t stack_size; /* 2, 4, 8: width of SP in pushes and pops */
    uint8_t cpl;
    uint8_t mmu; /* enum x86_mmu of data accesses */
    bool protected_mode, v86, long_mode /* EFER.LMA */;
    uint8_t flat_read, flat_write; /* bit per enum x86_seg: no check needed, only add the base */
    uint64_t seg_base[6];          /* what to add: zero for CS, DS, ES, SS in 64-bit mode */
    struct x86_decode_mode decode_mode;
    struct x86_tlb_entry *tlb_now; /* tlb[mmu] */

    /*
     * For who keeps translations of linear addresses to code: the numbers of the present sets of
     * them. A translation noted with x86_tlb_note_code holds while the number it was noted under is
     * the present one. A number changes to one never used before when something noted may have
     * become stale; code_space comes back when the guest returns to a PCID whose entries it kept.
     * Both change only at an instruction that ends its block, in an access to a device, or in the
     * exclusive section. The numbers say nothing of the privilege level: keep that (mmu) beside
     * them. None is ever 0. When code_space_wraps changes all numbers begin anew: drop everything.
     */
    uint32_t code_space;        /* pages not global */
    uint32_t code_space_global; /* global pages */
    uint32_t code_space_wraps;

    /* The caller's loop stops after the present instruction when this is set, and clears it. */
    bool end_block;
    bool halted;         /* HLT was executed: s.mp_state is HALTED */
    bool debug_active;   /* TF, RF or an enabled breakpoint: run by single instructions */
    bool debug_step;     /* TF was set when the present instruction began */
    bool debug_keep_rf;  /* the present instruction set RF for the next one */
    uint64_t debug_hits; /* DR6 bits of data and I/O breakpoints hit by the present instruction */

    jmp_buf *unwind;        /* where x86_raise_* goes */
    struct x86_event fault; /* what was raised */

    const struct x86_ops *ops;
    void *context; /* for ops */
    const struct x86_decoder *decoder;
    const struct x86_cpuid_table *cpuid;
    const struct x86_features *features; /* &cpuid->features */
    struct x86_stubs *stubs;

    uint64_t tlb_fills, tlb_walks, tlb_flushes; /* counters */
    /*
     * Changes when entries are taken away. A host pointer from the TLB is good while this stays; it
     * can change only where the owner stands at a safe point: in an access to a device, which a
     * page walk may be, too (tables in a device's memory).
     */
    uint64_t tlb_revocations;
    unsigned pauses; /* PAUSEs executed since ops->yield */
    struct x86_host_code host;
    _Alignas(64) struct x86_tlb_entry tlb[X86_MMU_COUNT][X86_TLB_SIZE];
    struct x86_tlb_book book;
};

struct x86_cpu_config {
    const struct x86_ops *ops;
    void *context;
    const struct x86_decoder *decoder;
    const struct x86_cpuid_table *cpuid;
    struct x86_stubs *stubs; /* may be NULL */
    uint32_t apic_id;
    bool is_bsp;
};

/* To the reset state. Everything in config outlives the CPU. */
void x86_cpu_init(struct x86_cpu *cpu, const struct x86_cpu_config *config);
void x86_cpu_set_state(struct x86_cpu *cpu, const struct x86_state *state); /* validated before */
void x86_cpu_get_state(const struct x86_cpu *cpu, struct x86_state *out);
void x86_cpu_update_mode(struct x86_cpu *cpu);
/* The same where CS was and is 64-bit code: only the privilege level and RFLAGS have changed. */
void x86_cpu_update_level(struct x86_cpu *cpu);
/* Which table explicit data accesses at this privilege level use, without alignment checks. */
enum x86_mmu x86_mmu_at(const struct x86_cpu *cpu, unsigned cpl);

/* Raise an exception out of a handler. */
_Noreturn void x86_raise(struct x86_cpu *cpu, enum x86_vector vector);
_Noreturn void x86_raise_error(struct x86_cpu *cpu, enum x86_vector vector, uint32_t error);
_Noreturn void x86_raise_page_fault(struct x86_cpu *cpu, uint64_t la, uint32_t error);
_Noreturn void x86_raise_event(struct x86_cpu *cpu, const struct x86_event *event);

enum x86_result {
    X86_OK,
    X86_FAULT,    /* cpu->fault was raised and not delivered; s.rip is the instruction's */
    X86_SHUTDOWN, /* triple fault */
};

/*
 * Fetches, decodes and executes one instruction. Does not deliver: a fault is returned. Traps that
 * follow the instruction (single-step, data breakpoints) are returned as X86_FAULT too, with
 * s.rip behind it.
 */
enum x86_result x86_step(struct x86_cpu *cpu);

/*
 * Delivers an event through the IDT (or IVT), with the rules for faults during delivery (SDM
 * vol. 3 table 6-5). X86_OK or X86_SHUTDOWN (mp_state is SHUTDOWN then). The event must be
 * deliverable now (IF, shadow: the caller looks). Ends HALTED and the interrupt shadow. The return
 * address is s.rip, for the three software kinds cpu->next_rip (deliver them right after x86_step).
 * deliver.c.
 */
enum x86_result x86_deliver(struct x86_cpu *cpu, const struct x86_event *event);

/* MSRs; false: #GP. msr.c */
bool x86_msr_read(struct x86_cpu *cpu, uint32_t index, uint64_t *value);
bool x86_msr_write(struct x86_cpu *cpu, uint32_t index, uint64_t value);

static inline uint64_t x86_tsc(struct x86_cpu *cpu)
{
    return cpu->ops->tsc(cpu->context) + cpu->s.tsc_offset;
}

#endif
