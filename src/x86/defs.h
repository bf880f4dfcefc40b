/*
 * Architectural numbers under the manuals' names: registers, flag and control bits, vectors, MSRs,
 * page-table bits. SDM vol. 1 chapter 3, vol. 3 chapters 2-6, vol. 4.
 */
#ifndef PARAT_X86_DEFS_H
#define PARAT_X86_DEFS_H

#include "base/bits.h"

enum x86_gpr {
    X86_RAX,
    X86_RCX,
    X86_RDX,
    X86_RBX,
    X86_RSP,
    X86_RBP,
    X86_RSI,
    X86_RDI,
    X86_R8,
    X86_R9,
    X86_R10,
    X86_R11,
    X86_R12,
    X86_R13,
    X86_R14,
    X86_R15,
};

enum x86_seg { X86_ES, X86_CS, X86_SS, X86_DS, X86_FS, X86_GS };

/* RFLAGS */
#define X86_CF           BIT(0)
#define X86_FIXED        BIT(1)
#define X86_PF           BIT(2)
#define X86_AF           BIT(4)
#define X86_ZF           BIT(6)
#define X86_SF           BIT(7)
#define X86_TF           BIT(8)
#define X86_IF           BIT(9)
#define X86_DF           BIT(10)
#define X86_OF           BIT(11)
#define X86_IOPL         (3ull << 12)
#define X86_NT           BIT(14)
#define X86_RF           BIT(16)
#define X86_VM           BIT(17)
#define X86_AC           BIT(18)
#define X86_VIF          BIT(19)
#define X86_VIP          BIT(20)
#define X86_ID           BIT(21)
#define X86_STATUS_FLAGS (X86_CF | X86_PF | X86_AF | X86_ZF | X86_SF | X86_OF)

/* CR0 */
#define X86_CR0_PE BIT(0)
#define X86_CR0_MP BIT(1)
#define X86_CR0_EM BIT(2)
#define X86_CR0_TS BIT(3)
#define X86_CR0_ET BIT(4)
#define X86_CR0_NE BIT(5)
#define X86_CR0_WP BIT(16)
#define X86_CR0_AM BIT(18)
#define X86_CR0_NW BIT(29)
#define X86_CR0_CD BIT(30)
#define X86_CR0_PG BIT(31)

/* CR4 */
#define X86_CR4_VME        BIT(0)
#define X86_CR4_PVI        BIT(1)
#define X86_CR4_TSD        BIT(2)
#define X86_CR4_DE         BIT(3)
#define X86_CR4_PSE        BIT(4)
#define X86_CR4_PAE        BIT(5)
#define X86_CR4_MCE        BIT(6)
#define X86_CR4_PGE        BIT(7)
#define X86_CR4_PCE        BIT(8)
#define X86_CR4_OSFXSR     BIT(9)
#define X86_CR4_OSXMMEXCPT BIT(10)
#define X86_CR4_UMIP       BIT(11)
#define X86_CR4_FSGSBASE   BIT(16)
#define X86_CR4_PCIDE      BIT(17)
#define X86_CR4_OSXSAVE    BIT(18)
#define X86_CR4_SMEP       BIT(20)
#define X86_CR4_SMAP       BIT(21)

/* EFER */
#define X86_EFER_SCE   BIT(0)
#define X86_EFER_LME   BIT(8)
#define X86_EFER_LMA   BIT(10)
#define X86_EFER_NXE   BIT(11)
#define X86_EFER_FFXSR BIT(14)

/* Segment attributes: byte 5 of the descriptor in bits 0-7, the flags nibble of byte 6 in 12-15. */
#define X86_SEG_TYPE        0x000f
#define X86_SEG_ACCESSED    0x0001 /* code, data */
#define X86_SEG_WRITABLE    0x0002 /* data */
#define X86_SEG_READABLE    0x0002 /* code */
#define X86_SEG_EXPAND_DOWN 0x0004 /* data */
#define X86_SEG_CONFORMING  0x0004 /* code */
#define X86_SEG_CODE        0x0008
#define X86_SEG_S           0x0010 /* code or data, not system */
#define X86_SEG_DPL         0x0060
#define X86_SEG_DPL_SHIFT   5
#define X86_SEG_P           0x0080
#define X86_SEG_AVL         0x1000
#define X86_SEG_L           0x2000
#define X86_SEG_DB          0x4000
#define X86_SEG_G           0x8000

/* Exceptions */
enum x86_vector {
    X86_DE = 0,
    X86_DB = 1,
    X86_NMI = 2,
    X86_BP = 3,
    X86_OF_TRAP = 4,
    X86_BR = 5,
    X86_UD = 6,
    X86_NM = 7,
    X86_DF_FAULT = 8,
    X86_TS = 10,
    X86_NP = 11,
    X86_SS_FAULT = 12,
    X86_GP = 13,
    X86_PF_FAULT = 14,
    X86_MF = 16,
    X86_AC_FAULT = 17,
    X86_MC = 18,
    X86_XM = 19,
};

/* Page-fault error code */
#define X86_PFERR_P    BIT(0)
#define X86_PFERR_W    BIT(1)
#define X86_PFERR_U    BIT(2)
#define X86_PFERR_RSVD BIT(3)
#define X86_PFERR_I    BIT(4)

/* Page-table entries */
#define X86_PTE_P   BIT(0)
#define X86_PTE_W   BIT(1)
#define X86_PTE_U   BIT(2)
#define X86_PTE_PWT BIT(3)
#define X86_PTE_PCD BIT(4)
#define X86_PTE_A   BIT(5)
#define X86_PTE_D   BIT(6)
#define X86_PTE_PS  BIT(7)
#define X86_PTE_G   BIT(8)
#define X86_PTE_NX  BIT(63)

/* MSRs */
enum x86_msr {
    X86_MSR_TSC = 0x10,
    X86_MSR_PLATFORM_ID = 0x17,
    X86_MSR_APIC_BASE = 0x1b,
    X86_MSR_TSC_ADJUST = 0x3b,
    X86_MSR_SPEC_CTRL = 0x48,
    X86_MSR_PRED_CMD = 0x49,
    X86_MSR_UCODE_REV = 0x8b,
    X86_MSR_MTRR_CAP = 0xfe,
    X86_MSR_SYSENTER_CS = 0x174,
    X86_MSR_SYSENTER_ESP = 0x175,
    X86_MSR_SYSENTER_EIP = 0x176,
    X86_MSR_MCG_CAP = 0x179,
    X86_MSR_MCG_STATUS = 0x17a,
    X86_MSR_MCG_CTL = 0x17b,
    X86_MSR_MISC_ENABLE = 0x1a0,
    X86_MSR_DEBUG_CTL = 0x1d9,
    X86_MSR_MTRR_BASE0 = 0x200,
    X86_MSR_MTRR_FIX_64K = 0x250,
    X86_MSR_MTRR_FIX_16K_80000 = 0x258,
    X86_MSR_MTRR_FIX_16K_A0000 = 0x259,
    X86_MSR_MTRR_FIX_4K_C0000 = 0x268,
    X86_MSR_PAT = 0x277,
    X86_MSR_MTRR_DEF_TYPE = 0x2ff,
    X86_MSR_TSC_DEADLINE = 0x6e0,
    X86_MSR_X2APIC = 0x800,
    X86_MSR_X2APIC_END = 0x8ff,
    X86_MSR_XSS = 0xda0,
    X86_MSR_KVM_WALL_CLOCK_OLD = 0x11,
    X86_MSR_KVM_SYSTEM_TIME_OLD = 0x12,
    X86_MSR_KVM_WALL_CLOCK = 0x4b564d00,
    X86_MSR_KVM_SYSTEM_TIME = 0x4b564d01,
};

/* Numbers that do not fit an int, hence not in the enum. */
#define X86_MSR_EFER           0xc0000080u
#define X86_MSR_STAR           0xc0000081u
#define X86_MSR_LSTAR          0xc0000082u
#define X86_MSR_CSTAR          0xc0000083u
#define X86_MSR_SFMASK         0xc0000084u
#define X86_MSR_FS_BASE        0xc0000100u
#define X86_MSR_GS_BASE        0xc0000101u
#define X86_MSR_KERNEL_GS_BASE 0xc0000102u
#define X86_MSR_TSC_AUX        0xc0000103u

/* IA32_APIC_BASE */
#define X86_APIC_BASE_BSP     BIT(8)
#define X86_APIC_BASE_X2APIC  BIT(10)
#define X86_APIC_BASE_ENABLE  BIT(11)
#define X86_APIC_BASE_ADDRESS 0xfee00000ull

/* XCR0 */
#define X86_XCR0_X87 BIT(0)
#define X86_XCR0_SSE BIT(1)
#define X86_XCR0_AVX BIT(2)

#endif
