/* Halts for ever. tools/lab keeps a VM with it. */
#include "flat.h"

void guest_main(void)
{
    for (;;)
        asm volatile("cli; hlt");
}
