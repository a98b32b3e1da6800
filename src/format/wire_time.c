/* SPDX-License-Identifier: Apache-2.0 */
/* Times on the wire: RFC 3339 section 5.6, UTC ("Z") only, without leap seconds. */
#include <string.h>

#include "base/fmt.h"
#include "format/wire.h"

#define NS_PER_S 1000000000
#define NS_PER_MS 1000000
#define YEAR_MAX 2261 /* the last whole year in 63 bits of nanoseconds */

void klp_wire_time_text(int64_t wall_ns, bool exact, char out[KLP_WIRE_TIME_SIZE])
{
    _Static_assert(KLP_WIRE_TIME_SIZE >= KLP_TIME_TEXT_SIZE + 7, "room for nanoseconds and Z");
    if (wall_ns < 0)
        wall_ns = 0;
    klp_time_text(wall_ns, out);
    if (exact && wall_ns % NS_PER_MS != 0) {
        size_t at = strlen(out) - 1; /* of the Z */
        (void)klp_format(out + at, KLP_WIRE_TIME_SIZE - at, "%06uZ",
                         (unsigned)(wall_ns % NS_PER_MS));
    }
}

/* `count` digits; -1 when one is none. */
static int digits(const char *text, unsigned count)
{
    int value = 0;
    for (unsigned i = 0; i < count; i++) {
        if (text[i] < '0' || text[i] > '9')
            return -1;
        value = value * 10 + (text[i] - '0');
    }
    return value;
}

/* Of the proleptic Gregorian calendar, from 1970-01-01. The year is counted from March, so that a
 * leap day is its last. */
static int64_t days_from_date(int year, int month, int day)
{
    if (month <= 2)
        year--;
    int64_t month_of_year = (month + 9) % 12;
    int64_t day_of_year = (153 * month_of_year + 2) / 5 + day - 1;
    int64_t days = (int64_t)year * 365 + year / 4 - year / 100 + year / 400 + day_of_year;
    return days - 719468; /* 0000-03-01 to 1970-01-01 */
}

static int month_days(int year, int month)
{
    static const int days[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    bool is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    return month == 2 && is_leap ? 29 : days[month - 1];
}

/* ".digits" or nothing, then the end; nanoseconds, -1 when malformed. */
static int64_t fraction_parse(const char *text)
{
    int64_t ns = 0, unit = NS_PER_S / 10;
    if (*text == '.') {
        if (digits(++text, 1) < 0)
            return -1;
        for (; *text >= '0' && *text <= '9'; text++, unit /= 10)
            ns += (*text - '0') * unit; /* digits below a nanosecond fall away */
    }
    return strcmp(text, "Z") == 0 ? ns : -1;
}

bool klp_wire_time_parse(const char *text, int64_t *out_ns)
{
    static const char shape[] = "0000-00-00T00:00:00";
    if (strlen(text) < sizeof(shape) || strlen(text) >= KLP_WIRE_TIME_SIZE)
        return false;
    for (size_t i = 0; i < sizeof(shape) - 1; i++) {
        if (shape[i] != '0' && text[i] != shape[i])
            return false;
    }
    int year = digits(text, 4), month = digits(text + 5, 2), day = digits(text + 8, 2);
    int hour = digits(text + 11, 2), minute = digits(text + 14, 2), second = digits(text + 17, 2);
    int64_t ns = fraction_parse(text + sizeof(shape) - 1);
    if (year < 1970 || year > YEAR_MAX || month < 1 || month > 12 || day < 1 ||
        day > month_days(year, month))
        return false;
    if (hour < 0 || hour > 23 || minute < 0 || minute > 59 || second < 0 || second > 59 || ns < 0)
        return false;
    int64_t seconds = ((days_from_date(year, month, day) * 24 + hour) * 60 + minute) * 60 + second;
    *out_ns = seconds * NS_PER_S + ns;
    return true;
}
