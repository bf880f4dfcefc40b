/*
 * What is said about a violation, in the handler of SIGSYS: no memory, no locks, no libc beyond
 * signal-safety(7). The names of the calls are made from the kernel's header when parat is built.
 */
#include <linux/audit.h>
#include <string.h>
#include <sys/prctl.h>

#include "base/sandbox.h"
#include "base/sandbox_names.h" /* static const char *const call_names[], made by tools/call-names */

#define SECCOMP_CODE 1 /* SYS_SECCOMP of siginfo's si_code */

const char *sandbox_call_name(long number)
{
    return number >= 0 && (size_t)number < ARRAY_COUNT(call_names) ? call_names[number] : NULL;
}

struct text {
    char *at;
    size_t left;
};

static void put(struct text *text, const char *string)
{
    while (*string && text->left > 1) {
        *text->at++ = *string++;
        text->left--;
    }
    *text->at = 0;
}

static void put_number(struct text *text, unsigned long value)
{
    char digits[24], *at = digits + sizeof digits - 1;
    *at = 0;
    do
        *--at = (char)('0' + value % 10);
    while (value /= 10);
    put(text, at);
}

size_t sandbox_describe(const siginfo_t *info, char *buffer, size_t size)
{
    struct text text = {buffer, size};
    char thread[17] = "";
    if (info->si_code != SECCOMP_CODE)
        return 0;
    prctl(PR_GET_NAME, thread, 0, 0, 0);
    const char *name = sandbox_call_name(info->si_syscall);
    put(&text, "parat: sandbox: thread ");
    put(&text, thread);
    put(&text, " tried the system call ");
    put(&text, name ? name : "without a name");
    put(&text, " (");
    put_number(&text, (unsigned long)(unsigned)info->si_syscall);
    put(&text, "), which it may not, or not so; the process ends\n");
    return size - text.left;
}
