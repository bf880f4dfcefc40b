/*
 * Self-modifying code: the next instruction, behind a jump, across pages, through an alias, by a
 * string instruction. SDM vol. 3 section 12.6: on a P6 and later a store to code is seen by the
 * instructions that follow it.
 */
#include "flat.h"

static uint8_t area[3 * 4096] __attribute__((aligned(4096)));

static uint32_t run(const uint8_t *p)
{
    return ((uint32_t(*)(void))(uint64_t)p)();
}

static void put_return(uint8_t *p, uint32_t value)
{
    p[0] = 0xb8; /* mov $value, %eax */
    memcpy(p + 1, &value, 4);
    p[5] = 0xc3;
}

static void rewritten(void)
{
    bool good = true;
    for (uint32_t i = 0; i < 1000; i++) {
        put_return(area, i);
        good &= run(area) == i;
    }
    check(good, "code that was rewritten runs in its new form, 1000 times");
    good = true;
    for (uint32_t i = 0; i < 200; i++) {
        put_return(area + 4096 - 3, i); /* the immediate lies on both pages */
        good &= run(area + 4096 - 3) == i;
        area[4096] = (uint8_t)(i + 1); /* the second page only: byte 2 of the immediate */
        uint32_t expect = i;
        memcpy((uint8_t *)&expect + 2, area + 4096, 1);
        good &= run(area + 4096 - 3) == expect;
    }
    check(good, "code across two pages, rewritten in either");
}

/* The store changes the instruction right behind it, in the same block. */
asm("smc_next:\n"
    "  movb $0x42, smc_target + 1\n"
    "smc_target: movb $0x11, %al\n"
    "  movzbl %al, %eax\n"
    "  ret\n"
    "smc_rep:\n" /* REP STOSB over the instructions that follow */
    "  lea smc_rep_target, %rdi\n"
    "  mov $0x90, %al\n"
    "  mov $2, %ecx\n"
    "  xor %edx, %edx\n"
    "  rep stosb\n"
    "smc_rep_target: inc %edx\n"
    "  mov %edx, %eax\n"
    "  ret\n"
    "smc_loop:\n" /* counts with an ADD whose immediate it changes each round */
    "  xor %eax, %eax\n"
    "  mov $10, %ecx\n"
    "1: .byte 0x05\n" /* add $imm32, %eax */
    "smc_loop_immediate: .long 1\n"
    "  incl smc_loop_immediate\n"
    "  dec %ecx\n"
    "  jnz 1b\n"
    "  ret\n");
extern uint8_t smc_next[], smc_target[], smc_rep[], smc_loop[];

static void in_the_same_block(void)
{
    check(run(smc_next) == 0x42, "the very next instruction");
    smc_target[1] = 0x11;
    check(run(smc_next) == 0x42, "and again");
    check(run(smc_rep) == 0, "instructions overwritten by REP STOSB");
    check(run(smc_loop) == 55, "a loop that changes itself each round");
}

static void alias(void)
{
    uint64_t *pte = flat_pte(0x40000000);
    *pte = (uint64_t)area | 7;
    invlpg((void *)0x40000000);
    uint8_t *other = (uint8_t *)0x40000000;
    bool good = true;
    for (uint32_t i = 0; i < 100; i++) {
        put_return(other, i * 3);
        good &= run(area) == i * 3;
        put_return(area, i * 5);
        good &= run(other) == i * 5;
    }
    check(good, "code changed through another mapping of its page");
}

/* The page is mapped to another frame, with other code, under the same address. */
static void remapped(void)
{
    static uint8_t second[4096] __attribute__((aligned(4096)));
    uint64_t *pte = flat_pte(0x40000000);
    put_return(area, 1);
    put_return(second, 2);
    bool good = true;
    for (unsigned i = 0; i < 100; i++) {
        *pte = (uint64_t)(i & 1 ? second : area) | 7;
        invlpg((void *)0x40000000);
        good &= run((uint8_t *)0x40000000) == (i & 1 ? 2 : 1);
    }
    check(good, "another page under the same address");
}

static void data_beside_code(void)
{
    put_return(area, 7);
    volatile uint32_t *data = (uint32_t *)(area + 2048);
    bool good = true;
    for (uint32_t i = 0; i < 10000; i++) {
        *data = i;
        good &= run(area) == 7 && *data == i;
    }
    check(good, "data beside code on one page");
}

void guest_main(void)
{
    rewritten();
    in_the_same_block();
    alias();
    remapped();
    data_beside_code();
}
