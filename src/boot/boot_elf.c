/*
 * ELF kernels: ELF-32 and ELF-64, little-endian, loaded by physical address (System V ABI, chapters
 * 4 and 5), and the PVH entry point (Xen's elfnote.h: XEN_ELFNOTE_PHYS32_ENTRY). Every field of the
 * file is untrusted. Loop thread.
 */
#include "boot/boot_int.h"

#include <elf.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define NOTES_MAX                (1u << 20)
#define NOTE_PHYS32_ENTRY        18 /* XEN_ELFNOTE_PHYS32_ENTRY */
#define PROGRAM_HEADERS_MAX      128
#define PROGRAM_HEADER_BYTES_MAX (PROGRAM_HEADERS_MAX * sizeof(Elf64_Phdr))

/* The file header's fields that count, of either class. */
struct header {
    bool is_64bit;
    uint64_t entry, phoff;
    unsigned phentsize, phnum;
};

/* Returns -ENOEXEC without a sentence when this is no ELF file at all. */
static int read_header(const struct boot_file *file, struct header *h, struct err *err)
{
    union {
        Elf32_Ehdr e32;
        Elf64_Ehdr e64;
        unsigned char ident[EI_NIDENT];
    } u;
    memset(&u, 0, sizeof u);
    if (boot_file_read(file, 0, &u, MIN(sizeof u, file->size), err))
        return -EIO;
    if (memcmp(u.ident, ELFMAG, SELFMAG) != 0)
        return -ENOEXEC;
    h->is_64bit = u.ident[EI_CLASS] == ELFCLASS64;
    if (file->size < (h->is_64bit ? sizeof u.e64 : sizeof u.e32))
        return boot_file_error(file, err, EINVAL, "is truncated: the ELF header is not complete");
    if ((!h->is_64bit && u.ident[EI_CLASS] != ELFCLASS32) || u.ident[EI_DATA] != ELFDATA2LSB)
        return boot_file_error(file, err, EINVAL, "is not a little-endian 32 or 64-bit ELF file");
    unsigned type = u.e32.e_type, machine = u.e32.e_machine; /* at the same place in both */
    if (machine != EM_386 && machine != EM_X86_64)
        return boot_file_error(file, err, EINVAL, "is an ELF file for another processor (%u)",
                               machine);
    if (type != ET_EXEC && type != ET_DYN)
        return boot_file_error(file, err, EINVAL, "is an ELF file that cannot be run (type %u)",
                               type);
    h->entry = h->is_64bit ? u.e64.e_entry : u.e32.e_entry;
    h->phoff = h->is_64bit ? u.e64.e_phoff : u.e32.e_phoff;
    h->phentsize = h->is_64bit ? u.e64.e_phentsize : u.e32.e_phentsize;
    h->phnum = h->is_64bit ? u.e64.e_phnum : u.e32.e_phnum;
    return 0;
}

static int check_program_headers(const struct boot_file *file, const struct header *h,
                                 struct err *err)
{
    unsigned size = h->is_64bit ? sizeof(Elf64_Phdr) : sizeof(Elf32_Phdr);
    if (h->phnum == 0 || h->phnum > PROGRAM_HEADERS_MAX || h->phentsize != size)
        return boot_file_error(file, err, EINVAL, "has %u ELF program headers of %u bytes",
                               h->phnum, h->phentsize);
    if (!range_fits(h->phoff, (uint64_t)h->phnum * size, file->size))
        return boot_file_error(file, err, EINVAL,
                               "is truncated: its ELF program headers lie behind its end");
    return 0;
}

/* One program header as ELF-64, whatever the file's class. */
static Elf64_Phdr program_header(const struct header *h, const uint8_t *table, unsigned index)
{
    Elf64_Phdr p;
    if (h->is_64bit) {
        memcpy(&p, table + index * sizeof p, sizeof p);
        return p;
    }
    Elf32_Phdr p32;
    memcpy(&p32, table + index * sizeof p32, sizeof p32);
    return (Elf64_Phdr) {.p_type = p32.p_type,
                         .p_offset = p32.p_offset,
                         .p_vaddr = p32.p_vaddr,
                         .p_paddr = p32.p_paddr,
                         .p_filesz = p32.p_filesz,
                         .p_memsz = p32.p_memsz};
}

static int add_segment(const struct boot_file *file, struct boot_elf *elf, const Elf64_Phdr *p,
                       struct err *err)
{
    uint64_t end;
    if (p->p_memsz == 0)
        return 0;
    if (p->p_filesz > p->p_memsz)
        return boot_file_error(file, err, EINVAL,
                               "has an ELF segment with more bytes in the file than in memory");
    if (!range_fits(p->p_offset, p->p_filesz, file->size))
        return boot_file_error(file, err, EINVAL,
                               "is truncated: an ELF segment lies behind its end");
    if (add_overflows(p->p_paddr, p->p_memsz, &end))
        return boot_file_error(file, err, EINVAL, "has an ELF segment that is too large");
    for (unsigned i = 0; i < elf->segment_count; i++)
        if (ranges_overlap(p->p_paddr, p->p_memsz, elf->segment[i].address,
                           elf->segment[i].mem_size))
            return boot_file_error(file, err, EINVAL, "has ELF segments that overlap at 0x%llx",
                                   (unsigned long long)p->p_paddr);
    if (elf->segment_count == BOOT_ELF_SEGMENTS_MAX)
        return boot_file_error(file, err, EINVAL, "has more than %d ELF segments",
                               BOOT_ELF_SEGMENTS_MAX);
    elf->segment[elf->segment_count++] =
        (struct boot_elf_segment) {p->p_offset, p->p_filesz, p->p_paddr, p->p_memsz, p->p_vaddr};
    return 0;
}

/* Looks for the PVH entry note in one PT_NOTE segment's bytes; alignment 4. */
static void scan_notes(const uint8_t *notes, uint64_t size, struct boot_elf *elf)
{
    uint64_t at = 0;
    while (range_fits(at, sizeof(Elf64_Nhdr), size)) {
        Elf64_Nhdr note;
        memcpy(&note, notes + at, sizeof note);
        uint64_t name = at + sizeof note;
        uint64_t data = name + align_up(note.n_namesz, 4);
        if (!range_fits(data, note.n_descsz, size))
            return;
        if (note.n_type == NOTE_PHYS32_ENTRY && note.n_namesz == 4 &&
            memcmp(notes + name, "Xen", 4) == 0 && note.n_descsz >= 4) {
            elf->has_pvh_entry = true;
            elf->pvh_entry = load_le32(notes + data);
        }
        at = data + align_up(note.n_descsz, 4);
    }
}

static int read_notes(const struct boot_file *file, struct boot_elf *elf, const Elf64_Phdr *p,
                      struct err *err)
{
    if (!range_fits(p->p_offset, p->p_filesz, file->size) || p->p_filesz > NOTES_MAX)
        return boot_file_error(file, err, EINVAL, "is truncated: its ELF notes lie behind its end");
    uint8_t *notes = malloc(p->p_filesz + 1);
    if (!notes)
        return boot_file_error(file, err, ENOMEM, "out of memory");
    int error = boot_file_read(file, p->p_offset, notes, p->p_filesz, err);
    if (!error)
        scan_notes(notes, p->p_filesz, elf);
    free(notes);
    return error;
}

static bool in_segments(const struct boot_elf *elf, uint64_t address)
{
    for (unsigned i = 0; i < elf->segment_count; i++)
        if (address - elf->segment[i].address < elf->segment[i].mem_size)
            return true;
    return false;
}

/* A kernel linked to high virtual addresses may name its entry by such a one. */
static int find_entry(const struct boot_file *file, struct boot_elf *elf, struct err *err)
{
    if (in_segments(elf, elf->entry))
        return 0;
    for (unsigned i = 0; i < elf->segment_count; i++) {
        const struct boot_elf_segment *s = &elf->segment[i];
        if (elf->entry - s->virtual_address < s->mem_size) {
            elf->entry = elf->entry - s->virtual_address + s->address;
            return 0;
        }
    }
    return boot_file_error(file, err, EINVAL, "its ELF entry point 0x%llx is in no segment",
                           (unsigned long long)elf->entry);
}

static int parse_program_headers(const struct boot_file *file, const struct header *h,
                                 struct boot_elf *elf, struct err *err)
{
    uint8_t table[PROGRAM_HEADER_BYTES_MAX];
    int error = boot_file_read(file, h->phoff, table, (size_t)h->phnum * h->phentsize, err);
    for (unsigned i = 0; i < h->phnum && !error; i++) {
        Elf64_Phdr p = program_header(h, table, i);
        if (p.p_type == PT_LOAD)
            error = add_segment(file, elf, &p, err);
        else if (p.p_type == PT_NOTE)
            error = read_notes(file, elf, &p, err);
    }
    return error;
}

int boot_elf_parse(const struct boot_file *file, struct boot_elf *elf, struct err *err)
{
    struct header h = {0};
    memset(elf, 0, sizeof *elf);
    int error = read_header(file, &h, err);
    if (!error)
        error = check_program_headers(file, &h, err);
    if (!error)
        error = parse_program_headers(file, &h, elf, err);
    if (error)
        return error;
    if (elf->segment_count == 0)
        return boot_file_error(file, err, EINVAL, "has nothing to load: no ELF segment");
    if (elf->has_pvh_entry && !in_segments(elf, elf->pvh_entry))
        return boot_file_error(file, err, EINVAL, "its PVH entry point 0x%x is in no segment",
                               elf->pvh_entry);
    elf->entry = h.entry;
    return elf->has_pvh_entry ? 0 : find_entry(file, elf, err);
}

static int reserve_segment(struct boot_map *map, const struct boot_file *file,
                           const struct boot_elf_segment *s, struct err *err)
{
    int error = boot_map_reserve(map, s->address, s->mem_size);
    if (error == -ERANGE)
        return boot_file_error(
            file, err, ENOMEM, "needs memory up to 0x%llx, and --memory gives it 0x%llx",
            (unsigned long long)(s->address + s->mem_size), (unsigned long long)map->low_end);
    if (error)
        return boot_file_error(file, err, EINVAL,
                               "wants to be loaded at 0x%llx, which the PC's firmware area holds",
                               (unsigned long long)s->address);
    return 0;
}

int boot_elf_load(struct boot_map *map, const struct boot_image *image, struct err *err)
{
    const struct boot_file *file = &image->kernel;
    for (unsigned i = 0; i < image->elf.segment_count; i++) {
        const struct boot_elf_segment *s = &image->elf.segment[i];
        int error = reserve_segment(map, file, s, err);
        if (!error)
            error = boot_file_load(file, s->offset, map->machine, s->address, s->file_size, err);
        if (error)
            return error;
        if (s->mem_size > s->file_size)
            error = guest_memory_fill(map->machine->memory, gpa(s->address + s->file_size), 0,
                                      s->mem_size - s->file_size);
        if (error)
            return boot_file_error(file, err, -error, "cannot clear its memory: %s",
                                   strerror(-error));
    }
    return 0;
}
