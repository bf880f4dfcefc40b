/*
 * Calendar of the real-time clock: Unix time to and from the registers' forms (BCD or binary, 12 or
 * 24 hours). Register values are a guest's: any byte is taken. Pure.
 */
#ifndef PARAT_DEVICE_RTC_TIME_H
#define PARAT_DEVICE_RTC_TIME_H

#include <stdint.h>

/* Register B's bits that say the form. */
#define RTC_TIME_BINARY  0x04
#define RTC_TIME_24_HOUR 0x02

#define RTC_TIME_UNIX_MAX 400000000000ll /* seconds; beyond the year 9999 */

struct rtc_time {
    int year;       /* 0 to 9999 */
    int month, day; /* from 1 */
    int weekday;    /* 1: Sunday */
    int hour, minute, second;
};

void rtc_time_from_unix(int64_t unix_s, struct rtc_time *out);
/* Fields out of range are brought into it. */
int64_t rtc_time_to_unix(const struct rtc_time *t);
/* registers[0] to [9] of the MC146818; alarm registers are left alone. */
void rtc_time_to_registers(const struct rtc_time *t, uint8_t form, uint8_t *registers,
                           uint8_t *century);
void rtc_time_from_registers(struct rtc_time *t, uint8_t form, const uint8_t *registers,
                             uint8_t century);

#endif
