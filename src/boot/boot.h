/*
 * Direct kernel boot: puts a kernel, its initrd or modules, the command line and the ACPI tables
 * into guest RAM and sets the first CPU up as the boot protocol asks. Formats are told by content:
 * Linux bzImage, ELF with a PVH note, multiboot 1 (ELF or a.out kludge).
 *
 * Files are opened once; each reset loads again from them. Loop thread.
 */
#ifndef PARAT_BOOT_BOOT_H
#define PARAT_BOOT_BOOT_H

#include "base/bits.h"
#include "base/err.h"

struct boot_image;
struct machine;
struct x86_state;

struct boot_config {
    const char *kernel;         /* --kernel */
    const char *const *initrds; /* --initrd, in order */
    unsigned initrd_count;
    const char *append; /* --append; NULL: empty */
};

/* Opens and checks the files. -errno with a sentence that names option and file. */
int boot_open(struct boot_image **out, const struct boot_config *config, struct err *err) MUST_USE;
void boot_close(struct boot_image *image); /* NULL is fine */

/*
 * Loads. Fits machine_config.load: context is the struct boot_image; *bsp is the reset state on
 * entry and the state to start with on return. -errno with a sentence.
 */
int boot_load(struct machine *machine, void *context, struct x86_state *bsp,
              struct err *err) MUST_USE;

#endif
