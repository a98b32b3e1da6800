/* SPDX-License-Identifier: Apache-2.0 */
/* What is printed: results on standard output, complete or not at all; all else on standard error.
 * Text that came from elsewhere is escaped for people and exact in JSON. */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/fmt.h"
#include "cli/cli.h"
#include "env/posix/posix.h"

#define COLUMNS_MAX 12
#define OUTPUT_MAX (64 * KLP_MIB)

bool cli_write(const void *data, size_t size, struct kelpie_error **err)
{
    for (size_t at = 0; at < size;) {
        ssize_t put = write(STDOUT_FILENO, (const char *)data + at, size - at);
        if (put > 0) {
            at += (size_t)put;
            continue;
        }
        if (put < 0 && errno == EAGAIN) {
            struct pollfd item = {.fd = STDOUT_FILENO, .events = POLLOUT};
            poll(&item, 1, -1);
        } else if (put < 0 && errno == EPIPE) {
            return klp_refuse(err, KELPIE_E_IO, "nobody reads the output any more");
        } else if (put < 0 && errno != EINTR) {
            return klp_posix_refuse(err, errno, "cannot write to standard output");
        }
    }
    return true;
}

bool cli_print_json(const struct klp_json *json, struct kelpie_error **err)
{
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf text = KLP_BUF_INIT(OUTPUT_MAX);
    klp_json_print(json, &text);
    klp_buf_append(&text, "\n", 1);
    KLP_CHECK(klp_buf_check(&text, "the output", err));
    return cli_write(text.data, text.size, err);
}

bool cli_print_format(struct kelpie_error **err, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    char *text = klp_vtext(format, args);
    va_end(args);
    bool fine = cli_write(text, strlen(text), err);
    klp_mem_free(text);
    return fine;
}

void cli_say(const struct cli *cli, const char *format, ...)
{
    va_list args;
    if (cli->args.quiet)
        return;
    va_start(args, format);
    char *text = klp_vtext(format, args);
    va_end(args);
    fprintf(stderr, "%s\n", text);
    klp_mem_free(text);
}

const struct klp_json *cli_first(const struct klp_json *document, const char *key)
{
    const struct klp_json *items = klp_rest_items(document, key);
    return items != NULL && klp_json_count(items) > 0 ? klp_json_at(items, 0) : NULL;
}

const char *cli_text_of(const struct klp_json *object, const char *key)
{
    const char *text = klp_json_text(klp_json_find(object, key));
    return text != NULL ? text : "";
}

/* ---- cells */

static void size_append(struct klp_buf *out, uint64_t bytes)
{
    static const char units[] = "BKMGTPE";
    unsigned unit = 0;
    uint64_t tenths = bytes * 10;
    if (bytes > UINT64_MAX / 10)
        tenths = UINT64_MAX;
    while (tenths >= 10240 && unit + 2 < sizeof(units)) {
        tenths /= 1024;
        unit++;
    }
    if (tenths % 10 != 0 && tenths < 1000 && unit > 0)
        klp_buf_append_format(out, "%llu.%llu", (unsigned long long)(tenths / 10),
                              (unsigned long long)(tenths % 10));
    else
        klp_buf_append_format(out, "%llu", (unsigned long long)(tenths / 10));
    klp_buf_append_u8(out, (uint8_t)units[unit]);
}

/* A value for people: whatever it is. */
static void value_append(struct klp_buf *out, const struct klp_json *value)
{
    const char *text = klp_json_text(value);
    if (text != NULL) {
        klp_text_escape(out, text, strlen(text));
        return;
    }
    if (klp_json_is_array(value)) {
        for (size_t i = 0; i < klp_json_count(value); i++) {
            if (i > 0)
                klp_buf_append_text(out, ",");
            value_append(out, klp_json_at(value, i));
        }
        return;
    }
    klp_json_print(value, out);
}

static bool is_null(const struct klp_json *object, const char *key)
{
    const struct klp_json *value = klp_json_find(object, key);
    int64_t number = 0;
    if (value == NULL)
        return true;
    if (klp_json_is_text(value) || klp_json_is_array(value) || klp_json_is_object(value))
        return false;
    /* null reads as absent: the number stays */
    return klp_json_get_i64(object, key, KLP_JSON_OPTIONAL, &number, NULL) && number == 0 &&
           !klp_json_get_i64(object, key, KLP_JSON_REQUIRED, &number, NULL);
}

static void cell_append(struct klp_buf *out, const struct klp_json *object,
                        const struct cli_column *column)
{
    uint64_t number = 0;
    size_t before = out->size;
    if (column->kind == CLI_SIZE &&
        klp_json_get_u64(object, column->key, KLP_JSON_REQUIRED, &number, NULL))
        size_append(out, number);
    else if (!is_null(object, column->key))
        value_append(out, klp_json_find(object, column->key));
    if (out->size == before)
        klp_buf_append_text(out, "-");
}

/* Columns of a terminal, near enough: characters, not bytes. */
static size_t cell_width(const char *text)
{
    size_t width = 0;
    for (; *text != 0; text++)
        width += ((unsigned char)*text & 0xc0) != 0x80;
    return width;
}

static char *cell_text(const struct klp_json *object, const struct cli_column *column)
{
    struct klp_buf text = KLP_BUF_INIT(KLP_MIB);
    cell_append(&text, object, column);
    return klp_buf_take_text(&text);
}

static void padded_append(struct klp_buf *out, const char *text, size_t width, bool last)
{
    klp_buf_append_text(out, text);
    for (size_t i = cell_width(text); !last && i < width + 2; i++)
        klp_buf_append_u8(out, ' ');
    if (last)
        klp_buf_append_u8(out, '\n');
}

bool cli_print_table(const struct klp_json *items, const struct cli_column *columns,
                     size_t column_count, struct kelpie_error **err)
{
    size_t widths[COLUMNS_MAX], count = klp_json_count(items);
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf out = KLP_BUF_INIT(OUTPUT_MAX);
    KLP_ASSERT(column_count <= COLUMNS_MAX);
    for (size_t c = 0; c < column_count; c++) {
        widths[c] = cell_width(columns[c].title);
        for (size_t i = 0; i < count; i++) {
            char *text = cell_text(klp_json_at(items, i), &columns[c]);
            widths[c] = cell_width(text) > widths[c] ? cell_width(text) : widths[c];
            klp_mem_free(text);
        }
    }
    for (size_t c = 0; c < column_count; c++)
        padded_append(&out, columns[c].title, widths[c], c + 1 == column_count);
    for (size_t i = 0; i < count; i++) {
        for (size_t c = 0; c < column_count; c++) {
            char *text = cell_text(klp_json_at(items, i), &columns[c]);
            padded_append(&out, text, widths[c], c + 1 == column_count);
            klp_mem_free(text);
        }
    }
    KLP_CHECK(klp_buf_check(&out, "the output", err));
    return cli_write(out.data, out.size, err);
}

static bool print_names(const struct klp_json *items, struct kelpie_error **err)
{
    for (size_t i = 0; i < klp_json_count(items); i++) {
        const struct klp_json *item = klp_json_at(items, i);
        const char *name = cli_text_of(item, "name");
        KLP_CHECK(cli_print_format(err, "%s\n", name[0] != 0 ? name : cli_text_of(item, "id")));
    }
    return true;
}

bool cli_print_list(const struct cli *cli, const struct klp_json *document, const char *key,
                    const struct cli_column *columns, size_t column_count,
                    struct kelpie_error **err)
{
    const struct klp_json *items = klp_rest_items(document, key);
    if (items == NULL)
        return klp_refuse(err, KELPIE_E_PROTOCOL, "the daemon's answer has no '%s'", key);
    if (cli->args.json)
        return cli_print_json(document, err);
    return cli->args.quiet ? print_names(items, err)
                           : cli_print_table(items, columns, column_count, err);
}

/* ---- one object */

bool cli_print_fields(const struct klp_json *object, struct kelpie_error **err)
{
    static const struct cli_column columns[] = {
        {"name", "name", CLI_TEXT},
        {"state", "state", CLI_TEXT},
        {"reason", "reason", CLI_TEXT},
        {"node", "node", CLI_TEXT},
        {"image", "image", CLI_TEXT},
        {"arch", "arch", CLI_TEXT},
        {"backend", "backend", CLI_TEXT},
        {"cpus", "vcpus", CLI_NUMBER},
        {"memory", "memory_bytes", CLI_SIZE},
        {"created", "created_at", CLI_TEXT},
        {"parent", "parent", CLI_TEXT},
        {"epoch", "epoch", CLI_NUMBER},
        {"pid", "pid", CLI_NUMBER},
        {"generation", "generation", CLI_TEXT},
        {"id", "id", CLI_TEXT},
    };
    static const char *const unique[] = {"kernel_rng", "clock", "identity", "userspace_rng"};
    __attribute__((cleanup(klp_auto_buf))) struct klp_buf out = KLP_BUF_INIT(OUTPUT_MAX);
    for (size_t i = 0; i < KLP_COUNT(columns); i++) {
        if (is_null(object, columns[i].key))
            continue;
        klp_buf_append_text(&out, columns[i].title);
        klp_buf_append_text(&out, ": ");
        cell_append(&out, object, &columns[i]);
        klp_buf_append_text(&out, "\n");
    }
    for (size_t i = 0; i < KLP_COUNT(unique); i++) {
        const char *text = cli_text_of(klp_json_find(object, "uniqueness"), unique[i]);
        if (text[0] != 0)
            klp_buf_append_format(&out, "unique %s: %s\n", unique[i], text);
    }
    const char *console = cli_text_of(object, "console_tail");
    if (console[0] != 0)
        klp_buf_append_text(&out, "console:\n");
    while (*console != 0) { /* line ends stay, what else a guest wrote is escaped */
        size_t size = strcspn(console, "\n");
        klp_buf_append_text(&out, "  ");
        klp_text_escape(&out, console, size);
        klp_buf_append_text(&out, "\n");
        console += size + (console[size] == '\n' ? 1 : 0);
    }
    KLP_CHECK(klp_buf_check(&out, "the output", err));
    return cli_write(out.data, out.size, err);
}
