/*
 * boot/: crafted kernels of each format are loaded where the protocols say, and each bad input gets
 * one sentence that names option and file.
 */
#include "rig.h"

#include <elf.h>
#include <errno.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "boot/boot.h"
#include "vm/machine.h"

#define RAM       (64ull << 20)
#define FILE_SIZE 0x6000

struct fixture {
    char folder[40];
    char kernel[64], initrd[64];
    uint8_t bytes[FILE_SIZE];
    struct machine *machine;
    struct boot_image *image;
    struct x86_state cpu;
    struct err err;
};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    strcpy(f->folder, "/tmp/parat-boot-XXXXXX");
    assert_non_null(mkdtemp(f->folder));
    snprintf(f->kernel, sizeof f->kernel, "%s/kernel", f->folder);
    snprintf(f->initrd, sizeof f->initrd, "%s/initrd", f->folder);
    f->machine = rig_create(RAM, 2);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    boot_close(f->image);
    rig_destroy(f->machine);
    unlink(f->kernel);
    unlink(f->initrd);
    rmdir(f->folder);
    free(f);
    return 0;
}

static void write_file(const char *path, const void *data, size_t size)
{
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, size, file), size);
    fclose(file);
}

/* Opens (and loads) the kernel in f->bytes, cut to size; initrds may repeat the one file. */
static int boot(struct fixture *f, size_t size, unsigned initrds, const char *append)
{
    const char *paths[2] = {f->initrd, f->initrd};
    struct boot_config config = {f->kernel, paths, initrds, append};
    write_file(f->kernel, f->bytes, size);
    boot_close(f->image);
    f->image = NULL;
    f->err.text[0] = 0;
    memset(&f->cpu, 0, sizeof f->cpu);
    int error = boot_open(&f->image, &config, &f->err);
    return error ? error : boot_load(f->machine, f->image, &f->cpu, &f->err);
}

/* The boot fails, and the sentence has these words beside option and file. */
static void refused(struct fixture *f, size_t size, const char *words)
{
    assert_true(boot(f, size, 0, NULL) < 0);
    assert_non_null(strstr(f->err.text, "--kernel"));
    assert_non_null(strstr(f->err.text, f->kernel));
    if (!strstr(f->err.text, words))
        fail_msg("\"%s\" lacks \"%s\"", f->err.text, words);
}

static uint64_t guest64(struct fixture *f, uint64_t address)
{
    uint64_t value = 0;
    assert_int_equal(guest_memory_read(f->machine->memory, gpa(address), &value, 8), 0);
    return value;
}

static uint32_t guest32(struct fixture *f, uint64_t address)
{
    return (uint32_t)guest64(f, address);
}

static void guest_text(struct fixture *f, uint64_t address, const char *expected)
{
    char text[64] = {0};
    assert_int_equal(guest_memory_read(f->machine->memory, gpa(address), text, sizeof text - 1), 0);
    assert_string_equal(text, expected);
}

/* --- bzImage --- */

#define PAYLOAD      0x400 /* one setup sector */
#define PAYLOAD_SIZE 0x3000

static void make_linux(struct fixture *f)
{
    memset(f->bytes, 0, sizeof f->bytes);
    f->bytes[0x1f1] = 1;
    store_le32(f->bytes + 0x1f4, PAYLOAD_SIZE / 16);
    store_le16(f->bytes + 0x1fe, 0xaa55);
    f->bytes[0x200] = 0xeb;
    f->bytes[0x201] = 0x66;
    memcpy(f->bytes + 0x202, "HdrS", 4);
    store_le16(f->bytes + 0x206, 0x020f);
    f->bytes[0x211] = 1;
    store_le32(f->bytes + 0x22c, 0x7fffffff);
    f->bytes[0x234] = 1;
    store_le16(f->bytes + 0x236, 1);
    store_le32(f->bytes + 0x238, 20);
    store_le64(f->bytes + 0x258, 0x1000000);
    store_le32(f->bytes + 0x260, 0x200000);
    for (unsigned i = 0; i < PAYLOAD_SIZE; i++)
        f->bytes[PAYLOAD + i] = (uint8_t)(i * 7);
}

static void test_linux_64bit(void **state)
{
    struct fixture *f = *state;
    make_linux(f);
    write_file(f->initrd, "initrd", 6);
    assert_int_equal(boot(f, FILE_SIZE, 2, "console=ttyS0"), 0);
    assert_int_equal(f->cpu.rip, 0x1000200);
    assert_int_equal(f->cpu.efer, X86_EFER_LME | X86_EFER_LMA);
    assert_int_equal(f->cpu.seg[X86_CS].selector, 0x10);
    assert_int_equal(f->cpu.seg[X86_CS].attr, 0xa09b);
    assert_int_equal(f->cpu.seg[X86_DS].selector, 0x18);
    assert_int_equal(guest64(f, 0x1000000 + 8), load_le64(f->bytes + PAYLOAD + 8));
    uint64_t page = f->cpu.gpr[X86_RSI];
    assert_int_equal(guest32(f, page + 0x202), 0x53726448);
    assert_int_equal(guest64(f, page + 0x070), 0xe0000);
    guest_text(f, guest32(f, page + 0x228), "console=ttyS0");
    uint64_t initrd = guest32(f, page + 0x218);
    assert_int_equal(guest32(f, page + 0x21c), 16); /* two files, each padded to 4 */
    guest_text(f, initrd, "initrd");
    guest_text(f, initrd + 8, "initrd");
    assert_true(initrd > 0x1200000 && initrd + 16 <= RAM);
    assert_int_equal(guest64(f, 0xe0000), 0x2052545020445352); /* "RSD PTR " */
}

/* The page tables map 4 GiB one to one. */
static void test_linux_page_tables(void **state)
{
    struct fixture *f = *state;
    make_linux(f);
    assert_int_equal(boot(f, FILE_SIZE, 0, NULL), 0);
    for (uint64_t la = 0; la < 1ull << 32; la += 0x12345000) {
        uint64_t table = f->cpu.cr3;
        for (int shift = 39; shift >= 30; shift -= 9) {
            uint64_t entry = guest64(f, table + ((la >> shift) & 511) * 8);
            assert_int_equal(entry & 0x83, 0x03);
            table = entry & 0xfffffffff000;
        }
        uint64_t entry = guest64(f, table + ((la >> 21) & 511) * 8);
        assert_int_equal(entry & 0x83, 0x83);
        assert_int_equal(entry & ~0xfffull, la & ~0x1fffffull);
    }
}

static void test_linux_memory_map(void **state)
{
    struct fixture *f = *state;
    make_linux(f);
    assert_int_equal(boot(f, FILE_SIZE, 0, NULL), 0);
    uint64_t page = f->cpu.gpr[X86_RSI], usable = 0;
    unsigned count = guest32(f, page + 0x1e8) & 0xff;
    for (unsigned i = 0; i < count; i++) {
        uint64_t at = page + 0x2d0 + i * 20;
        if (guest32(f, at + 16) != 1)
            continue;
        usable += guest64(f, at + 8);
        assert_true(guest64(f, at) + guest64(f, at + 8) <= RAM);
    }
    assert_int_equal(usable, RAM - 0x100000 + 0x9fc00);
}

static void test_linux_32bit_entry(void **state)
{
    struct fixture *f = *state;
    make_linux(f);
    store_le16(f->bytes + 0x236, 0);
    assert_int_equal(boot(f, FILE_SIZE, 0, NULL), 0);
    assert_int_equal(f->cpu.rip, 0x1000000);
    assert_int_equal(f->cpu.cr0, X86_CR0_PE | X86_CR0_ET);
    assert_int_equal(f->cpu.seg[X86_CS].attr, 0xc09b);
    assert_int_not_equal(f->cpu.gpr[X86_RSI], 0);
}

static void test_linux_bad(void **state)
{
    struct fixture *f = *state;
    make_linux(f);
    refused(f, PAYLOAD + PAYLOAD_SIZE - 1, "truncated");
    store_le16(f->bytes + 0x206, 0x0204);
    refused(f, FILE_SIZE, "boot protocol 2.04");
    make_linux(f);
    f->bytes[0x211] = 0;
    refused(f, FILE_SIZE, "zImage");
    make_linux(f);
    store_le64(f->bytes + 0x258, ~0ull);
    refused(f, FILE_SIZE, "wants to be loaded");
    make_linux(f);
    store_le32(f->bytes + 0x260, 0x4000000);
    refused(f, FILE_SIZE, "needs at least 80M of memory");
    make_linux(f);
    assert_true(boot(f, FILE_SIZE, 0, "a command line that is too long") < 0);
    assert_non_null(strstr(f->err.text, "--append"));
}

static void test_initrd_does_not_fit(void **state)
{
    struct fixture *f = *state;
    make_linux(f);
    write_file(f->initrd, "", 0);
    assert_int_equal(truncate(f->initrd, 100 << 20), 0);
    assert_true(boot(f, FILE_SIZE, 1, NULL) < 0);
    assert_non_null(strstr(f->err.text, "--initrd"));
    assert_non_null(strstr(f->err.text, f->initrd));
    assert_non_null(strstr(f->err.text, "do not fit"));
    assert_int_equal(truncate(f->initrd, 0), 0);
    assert_true(boot(f, FILE_SIZE, 1, NULL) < 0);
    assert_non_null(strstr(f->err.text, "is empty"));
}

static void test_initrd_below_its_limit(void **state)
{
    struct fixture *f = *state;
    make_linux(f);
    store_le32(f->bytes + 0x22c, 0x1ffffff);
    write_file(f->initrd, "initrd", 6);
    assert_int_equal(boot(f, FILE_SIZE, 1, NULL), 0);
    assert_int_equal(guest32(f, f->cpu.gpr[X86_RSI] + 0x218), 0x1fff000);
}

static void test_file_shrinks_between_resets(void **state)
{
    struct fixture *f = *state;
    make_linux(f);
    assert_int_equal(boot(f, FILE_SIZE, 0, NULL), 0);
    assert_int_equal(boot_load(f->machine, f->image, &f->cpu, &f->err), 0);
    assert_int_equal(truncate(f->kernel, 0x1000), 0);
    assert_true(boot_load(f->machine, f->image, &f->cpu, &f->err) < 0);
    assert_non_null(strstr(f->err.text, "shorter"));
}

/* --- ELF with a PVH note --- */

static Elf64_Ehdr *ehdr64(struct fixture *f)
{
    return (Elf64_Ehdr *)f->bytes;
}

static Elf64_Phdr *phdr64(struct fixture *f, unsigned index)
{
    return (Elf64_Phdr *)(f->bytes + sizeof(Elf64_Ehdr)) + index;
}

static void make_pvh(struct fixture *f)
{
    static const uint32_t note[] = {4, 4, 18, 0x006e6558, 0x200010};
    memset(f->bytes, 0, sizeof f->bytes);
    *ehdr64(f) = (Elf64_Ehdr) {.e_ident = {0x7f, 'E', 'L', 'F', ELFCLASS64, ELFDATA2LSB, 1},
                               .e_type = ET_EXEC,
                               .e_machine = EM_X86_64,
                               .e_entry = 0xffffffff80200000,
                               .e_phoff = sizeof(Elf64_Ehdr),
                               .e_phentsize = sizeof(Elf64_Phdr),
                               .e_phnum = 3};
    *phdr64(f, 0) = (Elf64_Phdr) {.p_type = PT_LOAD,
                                  .p_offset = 0x1000,
                                  .p_vaddr = 0xffffffff80200000,
                                  .p_paddr = 0x200000,
                                  .p_filesz = 0x2000,
                                  .p_memsz = 0x5000};
    *phdr64(f, 1) = (Elf64_Phdr) {.p_type = PT_LOAD,
                                  .p_offset = 0x3000,
                                  .p_paddr = 0x300000,
                                  .p_filesz = 0x1000,
                                  .p_memsz = 0x1000};
    *phdr64(f, 2) = (Elf64_Phdr) {.p_type = PT_NOTE, .p_offset = 0x800, .p_filesz = sizeof note};
    memcpy(f->bytes + 0x800, note, sizeof note);
    memset(f->bytes + 0x1000, 0xaa, 0x2000);
    memset(f->bytes + 0x3000, 0xbb, 0x1000);
}

static void test_pvh(void **state)
{
    struct fixture *f = *state;
    make_pvh(f);
    write_file(f->initrd, "module", 6);
    /* RAM is not clear at a reset: what is behind a segment's file bytes is cleared. */
    assert_int_equal(guest_memory_fill(f->machine->memory, gpa(0x200000), 0xcc, 0x5000), 0);
    assert_int_equal(boot(f, FILE_SIZE, 1, "pvh"), 0);
    assert_int_equal(f->cpu.rip, 0x200010);
    assert_int_equal(f->cpu.cr0 & (X86_CR0_PE | X86_CR0_PG), X86_CR0_PE);
    assert_int_equal(f->cpu.rflags, 2);
    assert_int_equal(guest32(f, 0x201ffc), 0xaaaaaaaa);
    assert_int_equal(guest32(f, 0x202000), 0);
    assert_int_equal(guest32(f, 0x300000), 0xbbbbbbbb);
    uint64_t info = f->cpu.gpr[X86_RBX];
    assert_int_equal(guest32(f, info), 0x336ec578);
    assert_int_equal(guest32(f, info + 12), 1);
    uint64_t module = guest64(f, info + 16);
    guest_text(f, guest64(f, module), "module");
    assert_int_equal(guest64(f, module + 8), 8);
    guest_text(f, guest64(f, info + 24), "pvh");
    assert_int_equal(guest64(f, info + 32), 0xe0000);
    assert_true(guest32(f, info + 48) >= 4);
}

static void test_elf_bad(void **state)
{
    struct fixture *f = *state;
    make_pvh(f);
    refused(f, 40, "truncated");
    refused(f, 100, "program headers lie behind");
    refused(f, 0x3800, "truncated");
    phdr64(f, 1)->p_paddr = 0x204fff;
    refused(f, FILE_SIZE, "overlap");
    make_pvh(f);
    phdr64(f, 0)->p_memsz = ~0ull;
    refused(f, FILE_SIZE, "too large");
    phdr64(f, 0)->p_memsz = 0x100000000ull;
    phdr64(f, 1)->p_type = PT_NULL;
    refused(f, FILE_SIZE, "needs memory up to");
    phdr64(f, 0)->p_memsz = 0x1fff;
    refused(f, FILE_SIZE, "more bytes in the file");
    make_pvh(f);
    phdr64(f, 0)->p_offset = ~0ull - 10;
    refused(f, FILE_SIZE, "truncated");
    make_pvh(f);
    phdr64(f, 1)->p_paddr = 0xf0000;
    refused(f, FILE_SIZE, "firmware area");
    make_pvh(f);
    phdr64(f, 0)->p_paddr = 0x400000;
    refused(f, FILE_SIZE, "PVH entry point");
    make_pvh(f);
    ehdr64(f)->e_machine = EM_AARCH64;
    refused(f, FILE_SIZE, "another processor");
    make_pvh(f);
    ehdr64(f)->e_type = ET_REL;
    refused(f, FILE_SIZE, "cannot be run");
    make_pvh(f);
    ehdr64(f)->e_phnum = 60000;
    refused(f, FILE_SIZE, "60000 ELF program headers");
    make_pvh(f);
    ehdr64(f)->e_phoff = ~0ull;
    refused(f, FILE_SIZE, "behind its end");
    make_pvh(f);
    phdr64(f, 2)->p_type = PT_NULL;
    refused(f, FILE_SIZE, "neither a PVH note nor a multiboot header");
}

/* Random damage to header and notes: an answer each time, never a crash. */
static void test_elf_fuzz(void **state)
{
    struct fixture *f = *state;
    uint64_t seed = 7;
    for (unsigned i = 0; i < 2000; i++) {
        make_pvh(f);
        for (unsigned k = 0; k < 4; k++) {
            uint64_t at =
                rig_random(&seed) % 3 ? rig_random(&seed) % 240 : 0x800 + rig_random(&seed) % 20;
            f->bytes[at] = (uint8_t)(rig_random(&seed) % 4 ? rig_random(&seed) : 0xff);
        }
        if (boot(f, FILE_SIZE, 0, NULL) < 0)
            assert_int_not_equal(f->err.text[0], 0);
    }
}

/* --- multiboot --- */

static void make_multiboot(struct fixture *f, uint32_t flags)
{
    memset(f->bytes, 0, sizeof f->bytes);
    *(Elf32_Ehdr *)f->bytes = (Elf32_Ehdr) {.e_ident = {0x7f, 'E', 'L', 'F', ELFCLASS32, 1, 1},
                                            .e_type = ET_EXEC,
                                            .e_machine = EM_386,
                                            .e_entry = 0xc0100020,
                                            .e_phoff = sizeof(Elf32_Ehdr),
                                            .e_phentsize = sizeof(Elf32_Phdr),
                                            .e_phnum = 1};
    *(Elf32_Phdr *)(f->bytes + sizeof(Elf32_Ehdr)) = (Elf32_Phdr) {.p_type = PT_LOAD,
                                                                   .p_offset = 0x1000,
                                                                   .p_vaddr = 0xc0100000,
                                                                   .p_paddr = 0x100000,
                                                                   .p_filesz = 0x1000,
                                                                   .p_memsz = 0x4000};
    uint32_t header[] = {0x1badb002, flags,   -(0x1badb002 + flags), 0x101000, 0x100000, 0x103000,
                         0x108000,   0x100040};
    memcpy(f->bytes + 0x1000, header, sizeof header);
}

static void test_multiboot(void **state)
{
    struct fixture *f = *state;
    make_multiboot(f, 3);
    write_file(f->initrd, "module text", 11);
    assert_int_equal(boot(f, FILE_SIZE, 2, "arg1 arg2"), 0);
    assert_int_equal(f->cpu.rip, 0x100020); /* the virtual entry, made physical */
    assert_int_equal(f->cpu.gpr[X86_RAX], 0x2badb002);
    uint64_t info = f->cpu.gpr[X86_RBX];
    assert_int_equal(guest32(f, info) & 0x24d, 0x24d);
    assert_int_equal(guest32(f, info + 4), 639);
    assert_int_equal(guest32(f, info + 8), RAM / 1024 - 1024);
    guest_text(f, guest32(f, info + 16), "arg1 arg2");
    assert_int_equal(guest32(f, info + 20), 2);
    uint64_t modules = guest32(f, info + 24);
    for (unsigned i = 0; i < 2; i++) {
        uint64_t start = guest32(f, modules + i * 16);
        assert_int_equal(start % 4096, 0);
        assert_true(start >= 0x104000);
        assert_int_equal(guest32(f, modules + i * 16 + 4) - start, 11);
        guest_text(f, start, "module text");
        guest_text(f, guest32(f, modules + i * 16 + 8), f->initrd);
    }
    uint64_t mmap = guest32(f, info + 48), end = mmap + guest32(f, info + 44), usable = 0;
    for (; mmap < end; mmap += guest32(f, mmap) + 4)
        usable += guest32(f, mmap + 20) == 1 ? guest64(f, mmap + 12) : 0;
    assert_int_equal(usable, RAM - 0x100000 + 0x9fc00);
}

static void test_multiboot_addresses(void **state)
{
    struct fixture *f = *state;
    make_multiboot(f, 0x10003);
    memset(f->bytes, 0, 0x1000); /* no ELF header */
    memcpy(f->bytes, "flat", 5);
    memset(f->bytes + 0x3000, 0xee, 0x3000);
    assert_int_equal(boot(f, FILE_SIZE, 0, NULL), 0);
    assert_int_equal(f->cpu.rip, 0x100040);
    guest_text(f, 0x100000, "flat");
    assert_int_equal(guest32(f, 0x101000), 0x1badb002);
    assert_int_equal(guest32(f, 0x103000), 0); /* load_end_addr ends what is loaded */
}

static void test_multiboot_bad(void **state)
{
    struct fixture *f = *state;
    make_multiboot(f, 0x8003);
    refused(f, FILE_SIZE, "wants something unknown");
    make_multiboot(f, 0x10003);
    refused(f, 0x2000, "truncated");
    store_le32(f->bytes + 0x1010, 0x102000);
    refused(f, FILE_SIZE, "behind itself");
    make_multiboot(f, 0x10003);
    store_le32(f->bytes + 0x1014, 0x1000);
    refused(f, FILE_SIZE, "ends before");
    make_multiboot(f, 0x10003);
    store_le32(f->bytes + 0x101c, 0x200000);
    refused(f, FILE_SIZE, "entry point");
    make_multiboot(f, 0x10003);
    store_le32(f->bytes + 0x1018, 0xff000000);
    refused(f, FILE_SIZE, "not all free RAM");
}

/* --- files --- */

static void test_bad_files(void **state)
{
    struct fixture *f = *state;
    struct boot_config config = {.kernel = f->kernel};
    assert_true(boot_open(&f->image, &config, &f->err) < 0);
    assert_non_null(strstr(f->err.text, "there is no such file"));
    config.kernel = f->folder;
    assert_true(boot_open(&f->image, &config, &f->err) < 0);
    assert_non_null(strstr(f->err.text, "is a directory"));
    config.kernel = "/dev/zero";
    assert_true(boot_open(&f->image, &config, &f->err) < 0);
    assert_non_null(strstr(f->err.text, "not a regular file"));
    refused(f, 0, "is empty");
    memcpy(f->bytes, "#!/bin/sh", 9);
    refused(f, 9, "not a kernel");
    refused(f, FILE_SIZE, "not a kernel");
}

static void test_memory_below_a_pc(void **state)
{
    struct fixture *f = *state;
    make_linux(f);
    rig_destroy(f->machine);
    f->machine = rig_create(1 << 20, 1);
    assert_true(boot(f, FILE_SIZE, 0, NULL) < 0);
    assert_non_null(strstr(f->err.text, "--memory"));
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_linux_64bit),
        TEST(test_linux_page_tables),
        TEST(test_linux_memory_map),
        TEST(test_linux_32bit_entry),
        TEST(test_linux_bad),
        TEST(test_initrd_does_not_fit),
        TEST(test_initrd_below_its_limit),
        TEST(test_file_shrinks_between_resets),
        TEST(test_pvh),
        TEST(test_elf_bad),
        TEST(test_elf_fuzz),
        TEST(test_multiboot),
        TEST(test_multiboot_addresses),
        TEST(test_multiboot_bad),
        TEST(test_bad_files),
        TEST(test_memory_below_a_pc),
    };
    return cmocka_run_group_tests_name("boot", tests, NULL, NULL);
}
