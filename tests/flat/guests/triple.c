/* A triple fault: no IDT at all. SDM vol. 3 section 6.15, "Double Fault". */
#include "flat.h"

void guest_main(void)
{
    struct {
        uint16_t limit;
        uint64_t base;
    } __attribute__((packed)) none = {0, 0};
    print("before\n");
    asm volatile("lidt %0; ud2" : : "m"(none));
    print("after\n");
}
