/* SPDX-License-Identifier: Apache-2.0 */
/* kelpie-dst: the options and statuses of CONTRACT "Simulator". Each seed is run, and the first
 * also a second time: a run that does not come out the same is a verdict of its own. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/ext/ext.h"
#include "mutants.h"
#include "sim.h"

#define WRONG_USE 2
#define RECHECK_EVERY 16 /* of the seeds of one call */

struct options {
    uint64_t seed, count;
    bool many, store_only, shrink, first, mutants, exhaustive, singles;
    const char *trace, *mutant, *plan;
};

static bool wrong(const char *format, const char *text)
{
    fprintf(stderr, "kelpie-dst: ");
    fprintf(stderr, format, text); /* a literal of this file */
    fprintf(stderr, "\n");
    return false;
}

/* Decimal or 0x digits below 2^64: no sign, no space, not nothing. */
static bool number_parse(const char *text, uint64_t *out)
{
    unsigned base = strncmp(text, "0x", 2) == 0 ? 16 : 10;
    const char *at = base == 16 ? text + 2 : text;
    if (*at == 0)
        return false;
    *out = 0;
    for (; *at != 0; at++) {
        const char *digits = "0123456789abcdef", *digit = strchr(digits, *at | 0x20);
        if (*at < '0' || digit == NULL || (unsigned)(digit - digits) >= base)
            return false;
        if (__builtin_mul_overflow(*out, (uint64_t)base, out) ||
            __builtin_add_overflow(*out, (uint64_t)(digit - digits), out))
            return false;
    }
    return true;
}

/* One with a value; false = a message was printed. */
static bool value_take(const char *name, const char *value, struct options *out)
{
    if (strcmp(name, "--seeds") == 0) {
        out->many = true;
        return (number_parse(value, &out->count) && out->count != 0) ||
               wrong("--seeds '%s' is no number above 0", value);
    }
    if (strcmp(name, "--fibers") == 0)
        return sim_fibers_choose(value) ||
               wrong("--fibers '%s' is none of this build's: asm, ucontext, thread", value);
    if (strcmp(name, "--trace") == 0)
        out->trace = value;
    else if (strcmp(name, "--plan") == 0)
        out->plan = value;
    else
        out->mutant = value;
    return true;
}

static bool *flag_of(const char *name, struct options *out)
{
    const struct {
        const char *name;
        bool *flag;
    } flags[] = {{"--store-only", &out->store_only}, {"--shrink", &out->shrink},
                 {"--first", &out->first},           {"--mutants", &out->mutants},
                 {"--exhaustive", &out->exhaustive}, {"--singles", &out->singles}};
    for (size_t i = 0; i < KLP_COUNT(flags); i++)
        if (strcmp(flags[i].name, name) == 0)
            return flags[i].flag;
    return NULL;
}

static bool takes_value(const char *name)
{
    return strcmp(name, "--seeds") == 0 || strcmp(name, "--trace") == 0 ||
           strcmp(name, "--fibers") == 0 || strcmp(name, "--mutant") == 0 ||
           strcmp(name, "--plan") == 0;
}

static bool options_parse(int argc, char **argv, struct options *out)
{
    *out = (struct options){.count = 1};
    for (int i = 1; i < argc; i++) {
        bool *flag = flag_of(argv[i], out);
        if (flag != NULL)
            *flag = true;
        else if (!takes_value(argv[i]) || i + 1 == argc)
            return wrong("unknown option or missing value: %s", argv[i]);
        else if (!value_take(argv[i], argv[i + 1], out))
            return false;
        else
            i++;
    }
    return true;
}

static bool seed_get(uint64_t *out)
{
    const char *text = getenv("DST_SEED");
    if (text != NULL)
        return number_parse(text, out) ||
               wrong("DST_SEED '%s' is neither decimal nor 0x digits below 2^64", text);
    return getrandom(out, sizeof(*out), 0) == (ssize_t)sizeof(*out) ||
           wrong("cannot draw a seed: %s", strerror(errno));
}

/* One run; the trace is of this one. A second run of the same seed must come out the same. */
static void seed_run(const struct options *options, uint64_t seed, bool twice, FILE *trace,
                     struct sim_result *out)
{
    struct sim_order order = {.scenario =
                                  options->store_only ? sim_scenario_store : sim_scenario_teleport,
                              .choice = {.mode = SIM_FAULTS_SWARM},
                              .trace = trace};
    static struct sim_result again; /* large */
    struct sim_plan plan;
    struct sim_faults faults;
    char text[2048];
    sim_plan_make(seed, &plan);
    sim_faults_plan(seed, &faults);
    sim_plan_text(&plan, &faults, text, sizeof(text));
    if (!options->many)
        printf("config: %s\n", text);
    sim_run(seed, &order, out);
    if (options->many && out->verdict != SIM_PASS)
        printf("seed=%" PRIu64 " config: %s\n", seed, text);
    if (out->verdict != SIM_PASS && options->shrink)
        sim_shrink(seed, &order, out);
    if (!twice || out->verdict != SIM_PASS)
        return;
    order.trace = NULL;
    sim_run(seed, &order, &again);
    if (again.hash == out->hash && again.verdict == out->verdict)
        return;
    fprintf(stderr,
            "kelpie-dst: seed %" PRIu64 " came to %016" PRIx64 " first and %016" PRIx64 " then\n",
            seed, out->hash, again.hash);
    out->verdict = SIM_NONDETERMINISM;
}

static void last_line(uint64_t seed, uint64_t hash, enum sim_verdict verdict)
{
    printf("seed=%" PRIu64 " hash=%016" PRIx64 " verdict=%s\n", seed, hash,
           sim_verdict_name(verdict));
}

static int seeds_run(const struct options *options, FILE *trace)
{
    static struct sim_result shown, result; /* large */
    uint64_t shown_seed = options->seed, teleports = 0, faults = 0, fold = 0;
    uint64_t runs = 0;
    while (runs < options->count && !(options->first && shown.verdict != SIM_PASS)) {
        uint64_t i = runs++, seed = options->seed + i;
        seed_run(options, seed, i % RECHECK_EVERY == 0, trace, &result);
        teleports += result.teleports;
        faults += result.faults;
        fold = options->many ? sim_mix(fold, result.hash, i) : result.hash;
        if (result.verdict != SIM_PASS && shown.verdict == SIM_PASS) {
            shown = result;
            shown_seed = seed;
        }
    }
    if (options->many)
        printf("runs=%" PRIu64 " teleports=%.2f faults=%.2f\n", runs,
               (double)teleports / (double)runs, (double)faults / (double)runs);
    last_line(shown_seed, shown.verdict == SIM_PASS ? fold : shown.hash, shown.verdict);
    return sim_verdict_status(shown.verdict);
}

/* --exhaustive, --exhaustive --singles */
static int sweep_run(const struct options *options)
{
    uint64_t hash;
    if (options->plan != NULL && !sim_plan_is_canonical(options->plan)) {
        wrong("--plan '%s' is none of --exhaustive's", options->plan);
        return WRONG_USE;
    }
    enum sim_verdict verdict =
        sim_exhaustive(options->seed, options->plan, options->singles, &hash);
    last_line(options->seed, hash, verdict);
    return sim_verdict_status(verdict);
}

/* What foreign libraries keep for ever belongs to no run. */
static void libraries_start(void)
{
    klp_ext_init();
}

int main(int argc, char **argv)
{
    struct options options;
    uint64_t seed = 0;
    if (!options_parse(argc, argv, &options) || !seed_get(&seed))
        return WRONG_USE;
    options.seed = seed;
    if (options.mutant != NULL)
        return sim_mutant_run(options.mutant, seed, options.many ? options.count : 0);
    if (options.mutants)
        return sim_mutants_run(seed, options.many ? options.count : 0);
    FILE *trace = NULL;
    if (options.trace != NULL && (trace = fopen(options.trace, "w")) == NULL) {
        wrong("cannot write the trace: %s", strerror(errno));
        return WRONG_USE;
    }
    libraries_start();
    int status = options.exhaustive ? sweep_run(&options) : seeds_run(&options, trace);
    if (trace != NULL)
        fclose(trace);
    sim_stacks_drop();
    return status;
}
