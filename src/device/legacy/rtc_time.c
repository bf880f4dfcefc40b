/*
 * Calendar of the real-time clock (rtc_time.h): the proleptic Gregorian calendar, with years that
 * begin in March so that the leap day comes last. Pure.
 */
#include "device/legacy/rtc_time.h"

#include "base/bits.h"

#define DAY_S        86400
#define DAYS_400     146097 /* days in 400 years */
#define DAYS_TO_1970 719468 /* from 1 March of the year 0 */
#define PM           0x80

static int64_t days_from_date(int year, int month, int day)
{
    int64_t y = year - (month <= 2);
    int64_t era = (y >= 0 ? y : y - 399) / 400, of_era = y - era * 400;
    int64_t day_of_year = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1;
    return era * DAYS_400 + of_era * 365 + of_era / 4 - of_era / 100 + day_of_year - DAYS_TO_1970;
}

static void date_from_days(int64_t days, struct rtc_time *out)
{
    days += DAYS_TO_1970;
    int64_t era = (days >= 0 ? days : days - (DAYS_400 - 1)) / DAYS_400;
    int64_t of_era = days - era * DAYS_400;
    int64_t year = (of_era - of_era / 1460 + of_era / 36524 - of_era / 146096) / 365;
    int64_t of_year = of_era - (365 * year + year / 4 - year / 100);
    int64_t month = (5 * of_year + 2) / 153; /* from March */
    out->day = (int)(of_year - (153 * month + 2) / 5 + 1);
    out->month = (int)(month < 10 ? month + 3 : month - 9);
    out->year = (int)(year + era * 400 + (out->month <= 2));
}

void rtc_time_from_unix(int64_t unix_s, struct rtc_time *out)
{
    unix_s = MIN(MAX(unix_s, days_from_date(0, 1, 1) * DAY_S),
                 days_from_date(9999, 12, 31) * DAY_S + DAY_S - 1);
    int64_t days = unix_s / DAY_S, second = unix_s % DAY_S;
    if (second < 0) {
        second += DAY_S;
        days--;
    }
    date_from_days(days, out);
    out->weekday = (int)((days % 7 + 7 + 4) % 7) + 1; /* 1970 began on a Thursday */
    out->hour = (int)(second / 3600);
    out->minute = (int)(second / 60 % 60);
    out->second = (int)(second % 60);
}

static int clamp(int value, int low, int high)
{
    return value < low ? low : MIN(value, high);
}

int64_t rtc_time_to_unix(const struct rtc_time *t)
{
    int64_t days =
        days_from_date(clamp(t->year, 0, 9999), clamp(t->month, 1, 12), clamp(t->day, 1, 31));
    return days * DAY_S + clamp(t->hour, 0, 23) * 3600 + clamp(t->minute, 0, 59) * 60 +
           clamp(t->second, 0, 59);
}

static uint8_t to_form(int value, uint8_t form)
{
    return (uint8_t)(form & RTC_TIME_BINARY ? value : value / 10 << 4 | value % 10);
}

static int from_form(uint8_t value, uint8_t form)
{
    return form & RTC_TIME_BINARY ? value : (value >> 4) * 10 + (value & 15);
}

static uint8_t hour_to_form(int hour, uint8_t form)
{
    if (form & RTC_TIME_24_HOUR)
        return to_form(hour, form);
    return to_form(hour % 12 ? hour % 12 : 12, form) | (hour >= 12 ? PM : 0);
}

static int hour_from_form(uint8_t value, uint8_t form)
{
    if (form & RTC_TIME_24_HOUR)
        return from_form(value, form);
    return from_form(value & 0x7f, form) % 12 + (value & PM ? 12 : 0);
}

void rtc_time_to_registers(const struct rtc_time *t, uint8_t form, uint8_t *registers,
                           uint8_t *century)
{
    registers[0] = to_form(t->second, form);
    registers[2] = to_form(t->minute, form);
    registers[4] = hour_to_form(t->hour, form);
    registers[6] = to_form(t->weekday, form);
    registers[7] = to_form(t->day, form);
    registers[8] = to_form(t->month, form);
    registers[9] = to_form(t->year % 100, form);
    *century = to_form(t->year / 100, form);
}

void rtc_time_from_registers(struct rtc_time *t, uint8_t form, const uint8_t *registers,
                             uint8_t century)
{
    t->second = from_form(registers[0], form);
    t->minute = from_form(registers[2], form);
    t->hour = hour_from_form(registers[4], form);
    t->weekday = from_form(registers[6], form);
    t->day = from_form(registers[7], form);
    t->month = from_form(registers[8], form);
    t->year = from_form(century, form) * 100 + from_form(registers[9], form) % 100;
}
