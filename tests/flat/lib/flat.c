/* The flat guests' library; see flat.h. */
#include "flat.h"

#include <stdarg.h>

struct gate {
    uint16_t offset_low, selector;
    uint8_t ist, type;
    uint16_t offset_middle;
    uint32_t offset_high, zero;
};

static struct gate idt[256] __attribute__((aligned(16)));
static void (*handlers[256])(struct frame *);
struct fault fault;
extern uint64_t try_stack, user_return_stack, ap_stack;
extern char flat_try_recover[], flat_user_return[], ap_trampoline[], ap_trampoline_end[];
void flat_init(void);
void flat_ap_entry(void);
void exception_handler(struct frame *frame);

void *memset(void *to, int byte, size_t n)
{
    void *start = to;
    asm volatile("rep stosb" : "+D"(to), "+c"(n) : "a"(byte) : "memory");
    return start;
}

void *memcpy(void *to, const void *from, size_t n)
{
    void *start = to;
    asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
    return start;
}

int memcmp(const void *a, const void *b, size_t n)
{
    const uint8_t *x = a, *y = b;
    for (; n; n--, x++, y++)
        if (*x != *y)
            return *x - *y;
    return 0;
}

static void put_char(char c)
{
    while (!(in8(0x3fd) & 0x20))
        pause();
    out8(0x3f8, (uint8_t)c);
}

static void put_number(uint64_t value, unsigned base, unsigned width)
{
    char digits[24];
    unsigned n = 0;
    do {
        digits[n++] = "0123456789abcdef"[value % base];
        value /= base;
    } while (value);
    while (n < width && n < sizeof digits)
        digits[n++] = '0';
    while (n)
        put_char(digits[--n]);
}

static const char *put_formatted(const char *f, va_list *args)
{
    unsigned width = 0;
    bool is_long = false;
    while (*f >= '0' && *f <= '9')
        width = width * 10 + (unsigned)(*f++ - '0');
    while (*f == 'l') {
        is_long = true;
        f++;
    }
    uint64_t value;
    switch (*f) {
    case 's':
        for (const char *s = va_arg(*args, const char *); *s; s++)
            put_char(*s);
        return f;
    case 'c':
        put_char((char)va_arg(*args, int));
        return f;
    case 'p':
        put_number(va_arg(*args, uint64_t), 16, width);
        return f;
    case 'd':
        value = is_long ? (uint64_t)va_arg(*args, long) : (uint64_t)va_arg(*args, int);
        if ((int64_t)value < 0) {
            put_char('-');
            value = -value;
        }
        put_number(value, 10, width);
        return f;
    default:
        value = is_long ? va_arg(*args, unsigned long) : va_arg(*args, unsigned);
        put_number(value, *f == 'x' ? 16 : 10, width);
        return f;
    }
}

void print(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    for (const char *f = format; *f; f++) {
        if (*f == '%' && f[1])
            f = put_formatted(f + 1, &args);
        else
            put_char(*f);
    }
    va_end(args);
}

void check(bool good, const char *what)
{
    print("%s %s\n", good ? "ok" : "FAIL", what);
}

_Noreturn void debug_exit(uint32_t value)
{
    out32(0xf4, value);
    for (;;)
        asm volatile("cli; hlt");
}

void flat_set_gate(unsigned vector, uint64_t handler, uint16_t selector, uint8_t type, uint8_t ist)
{
    idt[vector] = (struct gate) {.offset_low = (uint16_t)handler,
                                 .selector = selector,
                                 .ist = ist,
                                 .type = type,
                                 .offset_middle = (uint16_t)(handler >> 16),
                                 .offset_high = (uint32_t)(handler >> 32)};
}

void flat_set_handler(unsigned vector, void (*handler)(struct frame *))
{
    handlers[vector] = handler;
}

static void record(const struct frame *frame)
{
    fault = (struct fault) {.happened = true,
                            .vector = (unsigned)frame->vector,
                            .error = frame->error,
                            .rip = frame->rip,
                            .cr2 = frame->vector == 14 ? read_cr2() : 0,
                            .cs = frame->cs,
                            .rflags = frame->rflags,
                            .rsp = frame->rsp};
}

void exception_handler(struct frame *frame)
{
    if (handlers[frame->vector]) {
        handlers[frame->vector](frame);
        return;
    }
    record(frame);
    if (frame->cs & 3) {
        frame->rip = (uint64_t)flat_user_return;
        frame->rsp = user_return_stack;
    } else if (try_stack) {
        frame->rip = (uint64_t)flat_try_recover;
        frame->rsp = try_stack;
    } else {
        print("unexpected exception %lu error %lx rip %lx cr2 %lx\n", frame->vector, frame->error,
              frame->rip, read_cr2());
        debug_exit(99);
    }
    frame->cs = SEL_CODE64;
    frame->ss = SEL_DATA64;
    frame->rflags = 2;
}

void print_fault(const char *what)
{
    if (!fault.happened)
        print("%s: no fault\n", what);
    else if (fault.vector == 14)
        print("%s: #PF error %lx address %lx\n", what, fault.error, fault.cr2);
    else
        print("%s: fault %u error %lx\n", what, fault.vector, fault.error);
    fault.happened = false;
}

static void load_idt(void)
{
    struct {
        uint16_t limit;
        uint64_t base;
    } __attribute__((packed)) pointer = {sizeof idt - 1, (uint64_t)idt};
    asm volatile("lidt %0" : : "m"(pointer));
}

/* A 64-bit TSS: RSP0 is set by flat_call_user, IST1 is a stack of its own. */
static void set_tss(void)
{
    static uint8_t ist1[8192] __attribute__((aligned(16)));
    uint64_t base = (uint64_t)tss64, top = (uint64_t)(ist1 + sizeof ist1);
    memcpy(tss64 + 36, &top, 8);
    uint16_t no_io_map = 104;
    memcpy(tss64 + 102, &no_io_map, 2);
    gdt[SEL_TSS64 / 8] = 103 | (base & 0xffffff) << 16 | 0x89ull << 40 | (base >> 24 & 0xff) << 56;
    gdt[SEL_TSS64 / 8 + 1] = base >> 32;
    asm volatile("ltr %w0" : : "r"(SEL_TSS64));
    asm volatile("lldt %w0" : : "r"(0)); /* after reset it is usable, with base 0 */
}

void flat_init(void)
{
    for (unsigned v = 0; v < 256; v++)
        flat_set_gate(v, (uint64_t)exception_entries + v * 16, SEL_CODE64, 0x8e, 0);
    flat_set_gate(0x80, (uint64_t)exception_entries + 0x80 * 16, SEL_CODE64, 0xee, 0);
    load_idt();
    set_tss();
    /* 8259s masked: nothing comes that the guest did not ask for. */
    out8(0x21, 0xff);
    out8(0xa1, 0xff);
}

uint64_t *flat_pte(uint64_t address)
{
    static uint64_t tables[8][512] __attribute__((aligned(4096)));
    static unsigned used;
    uint64_t *pde = &page_directories[address >> 21];
    if (*pde & 0x80) {
        uint64_t *table = tables[used++];
        for (unsigned i = 0; i < 512; i++)
            table[i] = (*pde & ~0x1fffffull) + i * 4096ull + 7;
        *pde = (uint64_t)table | 7;
        write_cr3(read_cr3());
    }
    uint64_t *table = (uint64_t *)(*pde & ~0xfffull);
    return &table[address >> 12 & 511];
}

void flat_apic_enable(void)
{
    wrmsr(0x1b, rdmsr(0x1b) | 1 << 11);
    APIC(0xf0) = 0x1ff; /* enabled, spurious vector 255 */
    APIC(0x80) = 0;     /* task priority */
}

static void (*volatile ap_function)(void *);
static void *volatile ap_argument;
static volatile bool ap_taken;

void flat_ap_entry(void)
{
    void (*function)(void *) = ap_function;
    void *argument = ap_argument;
    load_idt();
    ap_taken = true;
    function(argument);
    for (;;)
        asm volatile("hlt");
}

static void apic_send(uint32_t destination, uint32_t command)
{
    APIC(0x310) = destination << 24;
    APIC(0x300) = command;
    while (APIC(0x300) & 1 << 12)
        pause();
}

void flat_start_ap(unsigned apic_id, void (*entry)(void *), void *argument)
{
    static uint8_t stacks[8][8192] __attribute__((aligned(16)));
    memcpy((void *)AP_TRAMPOLINE, ap_trampoline, (size_t)(ap_trampoline_end - ap_trampoline));
    ap_stack = (uint64_t)(stacks[apic_id & 7] + sizeof stacks[0]);
    ap_function = entry;
    ap_argument = argument;
    ap_taken = false;
    apic_send(apic_id, 0x4500); /* INIT, assert */
    apic_send(apic_id, 0x4600 | AP_TRAMPOLINE >> 12);
    while (!ap_taken)
        pause();
}
