/* SPDX-License-Identifier: Apache-2.0 */
/* What the verbs of `kelpie` share: the parsed arguments, the daemon to speak to, requests, tables.
 */
#ifndef KLP_CLI_CLI_H
#define KLP_CLI_CLI_H

#include "base/ext/json.h"
#include "cli/args.h"
#include "cli/http.h"
#include "format/rest.h"

#define CLI_VERSION "0.1.0"

struct cli {
    struct cli_args args;
    char *state;     /* owned; the local daemon's folder */
    char *host;      /* owned; "unix:PATH" */
    bool host_given; /* by flag or environment: nothing is started */
    bool may_start;  /* a local daemon is started when none answers */
    int status;      /* of the command that ran; the program's, unless it fails */
};

typedef kelpie_outcome cli_run(struct cli *cli, struct kelpie_error **err);

extern const struct cli_verb cli_verbs[];
void cli_help(const struct cli_args *args);

/* ---- main.c */
/* How it ends: prints the error (when there is one) and gives the exit status. */
int cli_complain(const struct kelpie_error *error, bool json, bool passes_status);
const char *cli_flag(const struct cli *cli, const char *name); /* NULL = not given */
bool cli_has(const struct cli *cli, const char *name);
KELPIE_MUST_USE bool cli_flag_u64(const struct cli *cli, const char *name, uint64_t max,
                                  uint64_t *out, struct kelpie_error **err);
KELPIE_MUST_USE bool cli_flag_duration(const struct cli *cli, const char *name, uint64_t *out_ms,
                                       struct kelpie_error **err);

/* ---- start.c */
/* A connection to the daemon (or to `endpoint`, when not NULL), which is started when allowed. */
KELPIE_MUST_USE kelpie_outcome cli_connect(struct cli *cli, const char *endpoint, int *out_fd,
                                           struct kelpie_error **err);
/* Full path of a program of ours: beside this one, in KELPIE_LIBEXEC, in libexec/kelpie; NULL =
 * none. Owned by the caller. */
char *cli_program_path(const char *name);

/* ---- call.c */
/* One JSON request. *out NULL when the answer is empty. Answers of 400 and more become errors.
 * endpoint: where to ask, NULL = the daemon; out_endpoint (KLP_ENDPOINT_SIZE, may be NULL): who
 * answered, "" = the daemon itself. body is taken over, NULL = none. */
KELPIE_MUST_USE kelpie_outcome cli_call_at(struct cli *cli, const char *endpoint,
                                           const char *method, const char *path, const char *key,
                                           struct klp_json *body, struct klp_json **out,
                                           char *out_endpoint, struct kelpie_error **err);
KELPIE_MUST_USE kelpie_outcome cli_call(struct cli *cli, const char *method, const char *path,
                                        struct klp_json *body, struct klp_json **out,
                                        struct kelpie_error **err);
/* Sends headers, follows one redirect to the owner; the body is the caller's to send or read. */
KELPIE_MUST_USE kelpie_outcome cli_http_open(struct cli *cli, const struct http_request *request,
                                             struct http *out, struct kelpie_error **err);
/* The same for a request whose body is a stream: the agent's owner is asked for first, since a
 * stream cannot be sent twice. */
KELPIE_MUST_USE kelpie_outcome cli_http_open_owner(struct cli *cli, const char *agent,
                                                   const struct http_request *request,
                                                   struct http *out, struct kelpie_error **err);
/* The answer's body as an error, when its status is 400 or more. */
KELPIE_MUST_USE kelpie_outcome cli_answer_check(struct http *http, struct kelpie_error **err);
/* "/v1/agents/NAME/VERB"; a verb may be NULL. INVALID when NAME is none. Owned. */
KELPIE_MUST_USE bool cli_path(const char *kind, const char *name, const char *verb, char **out,
                              struct kelpie_error **err);
/* Random hex for an Idempotency-Key. */
void cli_key(char out[KLP_ID_SIZE]);

/* ---- table.c */
struct cli_column {
    const char *title, *key;
    enum { CLI_TEXT, CLI_SIZE, CLI_NUMBER, CLI_LIST } kind;
};
/* stdout: the rest of the program writes there only by these. INTERNAL is never the answer: IO. */
KELPIE_MUST_USE bool cli_write(const void *data, size_t size, struct kelpie_error **err);
KELPIE_MUST_USE bool cli_print_json(const struct klp_json *json, struct kelpie_error **err);
/* A list of `document` by the flags: JSON as it came, names, or a table. */
KELPIE_MUST_USE bool cli_print_list(const struct cli *cli, const struct klp_json *document,
                                    const char *key, const struct cli_column *columns,
                                    size_t column_count, struct kelpie_error **err);
KELPIE_MUST_USE bool cli_print_table(const struct klp_json *items, const struct cli_column *columns,
                                     size_t column_count, struct kelpie_error **err);
/* key: value lines of one object, nested objects as key.key. */
KELPIE_MUST_USE bool cli_print_fields(const struct klp_json *object, struct kelpie_error **err);
KELPIE_MUST_USE bool cli_print_format(struct kelpie_error **err, const char *format, ...)
    KLP_PRINTF(2, 3);
void cli_say(const struct cli *cli, const char *format, ...)
    KLP_PRINTF(2, 3); /* stderr, unless -q */
/* The first object of a document's list, borrowed; NULL = none. */
const struct klp_json *cli_first(const struct klp_json *document, const char *key);
const char *cli_text_of(const struct klp_json *object, const char *key); /* "" when absent */

/* ---- each.c: the same for each of the verb's words, as one document under `key` or one failure
 * (of several: PARTIAL, all as reasons). says_names: without --json the names that went well are
 * printed. */
typedef kelpie_outcome cli_each(struct cli *cli, const char *name, const void *arg,
                                struct klp_json **out, struct kelpie_error **err);
KELPIE_MUST_USE kelpie_outcome cli_on_each(struct cli *cli, const char *key, bool says_names,
                                           cli_each *act, const void *arg,
                                           struct kelpie_error **err);
KELPIE_MUST_USE kelpie_outcome cli_inspect_each(struct cli *cli, const char *kind,
                                                const char *query, struct kelpie_error **err);
KELPIE_MUST_USE kelpie_outcome cli_remove_each(struct cli *cli, const char *kind, const char *query,
                                               struct kelpie_error **err);

/* ---- stream.c, exec.c */
struct cli_stream {
    bool reads_stdin;    /* forward it */
    bool tty;            /* raw mode, RESIZE frames */
    bool passes_signals; /* INT TERM HUP QUIT to the process; else they end the call (CANCELLED) */
    bool is_log;         /* nobody reads what we would send: a signal goes to the agent by REST */
    const char *agent;
};
/* Runs an upgraded connection to its end. */
KELPIE_MUST_USE kelpie_outcome cli_stream_run(struct cli *cli, struct http *http,
                                              const struct cli_stream *stream,
                                              struct klp_exec_result *out,
                                              struct kelpie_error **err);
struct cli_exec {
    const char *agent;
    const char *const *argv, *const *env;
    const char *workdir;
    bool tty_wanted, tty_refused, no_stdin;
};
KELPIE_MUST_USE kelpie_outcome cli_exec_stream(struct cli *cli, const struct cli_exec *exec,
                                               struct kelpie_error **err);
/* Follows the main process's output until it ends; its status into cli->status. */
KELPIE_MUST_USE kelpie_outcome cli_logs_follow(struct cli *cli, const char *agent, bool console,
                                               bool passes_signals, struct kelpie_error **err);
/* The status of a command, or the error it ended in. */
KELPIE_MUST_USE kelpie_outcome cli_exec_end(struct cli *cli, const char *agent,
                                            const struct klp_exec_result *result,
                                            struct kelpie_error **err);

/* ---- operations.c */
/* Begins an operation and waits for its end; *out is the document with it. */
KELPIE_MUST_USE kelpie_outcome cli_operate(struct cli *cli, const char *path,
                                           const struct klp_action_request *action,
                                           struct klp_json **out, struct kelpie_error **err);

/* ---- nodes.c: what `kelpied --doctor` says of this machine */
KELPIE_MUST_USE kelpie_outcome cli_doctor_here(struct cli *cli, struct klp_json **out,
                                               struct kelpie_error **err);

/* ---- the verbs */
cli_run verb_run, verb_create, verb_ps, verb_inspect, verb_status, verb_exec, verb_shell, verb_logs,
    verb_cp, verb_start, verb_stop, verb_kill, verb_rm, verb_pause, verb_resume, verb_suspend,
    verb_wait, verb_snapshot_create, verb_snapshot_ls, verb_snapshot_inspect, verb_snapshot_rm,
    verb_restore, verb_fork, verb_teleport, verb_image_build, verb_image_ls, verb_image_inspect,
    verb_image_rm, verb_node_ls, verb_node_inspect, verb_events, verb_ops_ls, verb_ops_show,
    verb_ops_wait, verb_ops_cancel, verb_doctor, verb_demo, verb_version;
/* file.c */
KELPIE_MUST_USE kelpie_outcome cli_inspect_file(struct cli *cli, const char *path,
                                                struct kelpie_error **err);

#endif
