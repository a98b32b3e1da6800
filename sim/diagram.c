/* SPDX-License-Identifier: Apache-2.0 */
/* A space-time diagram: what happened, a column a node, time downwards. Only what one needs to see
 * how a run went wrong: faults, points, changes of the registry, answers, the verdict. */
#include <stdlib.h>
#include <string.h>

#include "base/fmt.h"
#include "sim.h"

#define LINES_MAX 4096
#define TEXT_SIZE 160
#define COLUMN 46 /* characters */

struct line {
    uint64_t at_ns;
    uint32_t column;
    char kind[12], text[TEXT_SIZE];
};

struct sim_diagram {
    struct line lines[LINES_MAX];
    unsigned count, missing;
};

struct sim_diagram *sim_diagram_create(void)
{
    struct sim_diagram *diagram = calloc(1, sizeof(*diagram));
    KLP_ASSERT(diagram != NULL);
    return diagram;
}

void sim_diagram_destroy(struct sim_diagram *diagram)
{
    free(diagram);
}

static bool is_shown(const char *kind)
{
    static const char *const kinds[] = {"fault",  "point", "registry", "operation",
                                        "answer", "crash", "run",      "verdict"};
    for (unsigned i = 0; i < KLP_COUNT(kinds); i++)
        if (strcmp(kind, kinds[i]) == 0)
            return true;
    return false;
}

void sim_diagram_note(struct sim_diagram *diagram, const char *kind, const char *text)
{
    const struct sim_fiber *fiber = sim_world->current;
    bool is_detail = strcmp(kind, "point") == 0 && strncmp(text, "store.", 6) == 0;
    if (is_detail || !is_shown(kind))
        return;
    if (diagram->count == LINES_MAX) {
        diagram->missing++;
        return;
    }
    struct line *line = &diagram->lines[diagram->count++];
    line->at_ns = sim_world->now_ns;
    line->column = fiber != NULL && fiber->domain->kind != SIM_WORLD ? fiber->env->node : 0;
    klp_format(line->kind, sizeof(line->kind), "%s", kind);
    klp_format(line->text, sizeof(line->text), "%s", text);
}

static void mark(const struct line *line, char *out, size_t capacity)
{
    bool is_loud = strcmp(line->kind, "fault") == 0 || strcmp(line->kind, "verdict") == 0;
    klp_format(out, capacity, "%s%s", is_loud ? "*** " : "", line->text);
}

void sim_diagram_print(const struct sim_diagram *diagram, FILE *out)
{
    char text[TEXT_SIZE + 8];
    fprintf(out, "%12s  %-*s%-*s%-*s%s\n", "virtual ms", COLUMN, "node a", COLUMN, "node b", COLUMN,
            "node c", "node d");
    for (unsigned i = 0; i < diagram->count; i++) {
        const struct line *line = &diagram->lines[i];
        mark(line, text, sizeof(text));
        fprintf(out, "%12.3f  %*s%s\n", (double)line->at_ns / 1e6, (int)line->column * COLUMN, "",
                text);
    }
    if (diagram->missing > 0)
        fprintf(out, "(%u more)\n", diagram->missing);
}
