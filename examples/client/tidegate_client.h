/* A client for tidegate that fits a microcontroller. C99, and nothing of the C library
 * but memcpy and its like: no heap, no files, no clock. docs/write-a-device.md explains
 * it step by step, docs/protocol.md is what it speaks.
 *
 * It keeps readings in memory that you give it until the gateway has acknowledged them,
 * connects again with pauses that grow, authenticates itself, answers commands, and knows
 * the time once the gateway does. You give it functions that read and write bytes without
 * waiting, and a clock of milliseconds; and you call tg_poll() again and again, for
 * instance in your main loop. It is no good from an interrupt or from several threads.
 */
#ifndef TIDEGATE_CLIENT_H
#define TIDEGATE_CLIENT_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Sizes in bytes, to be changed on the compiler's command line. */
#ifndef TG_MAX_BODY
#define TG_MAX_BODY 512 /* largest body sent or taken: the gateway rejects a larger command */
#endif
#ifndef TG_MAX_SAMPLE
#define TG_MAX_SAMPLE 128 /* a reading with all its values */
#endif
#ifndef TG_COMMANDS
#define TG_COMMANDS 4 /* commands remembered, so that none is done twice */
#endif
#ifndef TG_MAX_OUTSTANDING
#define TG_MAX_OUTSTANDING 2048 /* readings sent and not acknowledged, on a serial line */
#endif
#ifndef TG_MAX_ANSWER
#define TG_MAX_ANSWER 64 /* a command's result with its terminator */
#endif
#define TG_MAX_ID 64 /* of a device, of a command */

#if TG_MAX_BODY < 256 || TG_MAX_SAMPLE > 224
#error "TG_MAX_BODY is 256 at least, TG_MAX_SAMPLE 224 at most: a Hello and a reading have to fit"
#endif
#if TG_MAX_ANSWER + 80 > TG_MAX_BODY
#error "TG_MAX_BODY is too small for TG_MAX_ANSWER"
#endif

/* The way to the gateway. Nothing here waits. */
struct tg_transport {
    void *context; /* handed to each of these */
    /* Opens the link: 1 if it is open, 0 if that takes longer (it is called again), -1 if
     * it cannot be opened now. NULL where the link is always open. */
    int (*open)(void *context);
    /* Reads up to `size` bytes: how many came, 0 if there are none now, -1 if the link is
     * gone. */
    int (*read)(void *context, uint8_t *bytes, size_t size);
    /* Writes up to `size` bytes: how many were taken, 0 if none can be now, -1 if the link
     * is gone. */
    int (*write)(void *context, const uint8_t *bytes, size_t size);
    /* Closes the link. NULL where that means nothing. */
    void (*close)(void *context);
    /* Milliseconds since boot; may wrap around. It has to go on while the device sleeps: add the
     * time slept if the counter stands still meanwhile. */
    uint32_t (*now_ms)(void *context);
    /* Not 0 if bytes may get lost or change on the way. */
    int serial;
};

struct tg_channel {
    const char *name;
    const char *unit; /* or NULL */
};

enum tg_type { TG_FLOAT, TG_INTEGER, TG_BOOLEAN, TG_TEXT };

struct tg_value {
    unsigned channel; /* its place in tg_config.channels */
    enum tg_type type;
    union {
        double number;
        int64_t integer;
        int boolean;
        const char *text;
    } as;
};

struct tg_value tg_float(unsigned channel, double number);
struct tg_value tg_integer(unsigned channel, int64_t integer);
struct tg_value tg_boolean(unsigned channel, int boolean);
struct tg_value tg_text(unsigned channel, const char *text);

struct tg_command {
    const char *id, *name;
    const char *payload; /* JSON text, or NULL */
    int64_t expires_in;  /* milliseconds for which it is still wanted; -1 for ever */
};

/* How a command ended, or that it did not yet. */
enum tg_result { TG_DONE, TG_FAILED, TG_REJECTED, TG_LATER };

struct tg_config {
    struct tg_transport transport;
    const char *device;   /* this device's name */
    const char *firmware; /* or NULL */
    const struct tg_channel *channels;
    unsigned channel_count;
    /* Names the numbering of readings: random, from a real source, at each start. Also the
     * seed of the pauses. */
    uint64_t session;
    /* Where readings are kept, 20 to 40 bytes each. */
    uint8_t *memory;
    size_t memory_size;
    /* If the memory is full: 0 to refuse new readings, 1 to give up the oldest instead. One
     * that the gateway waits for just now is not given up. */
    int give_up_oldest;
    /* For gateways that ask for it; NULL otherwise. The secret has 32 bytes. */
    const char *key;
    const uint8_t *secret;
    /* Does a command. `answer` has TG_MAX_ANSWER bytes and is empty; what is written there
     * has to be JSON. After TG_LATER, tg_finish() says how it ended. It must not call tg_poll(). NULL: all are rejected. */
    enum tg_result (*command)(void *context, const struct tg_command *command, char *answer);
    void *command_context;
    /* What happened, for people; `detail` may be empty. NULL if nobody wants to know. */
    void (*log)(void *context, const char *what, const char *detail);
    void *log_context;
};

/* All that the client knows. Yours to place, not to look into. */
struct tg_client {
    struct tg_config config;
    uint64_t now, random;
    uint32_t tick;
    enum { TG_CLOSED, TG_OPEN, TG_GREETED, TG_READY, TG_STOPPED } state;
    int stopping;
    unsigned declared; /* channels that Hello names */
    /* When things happened or will, in milliseconds since boot. */
    uint64_t opening, retry_at, greeted, established, heard, heartbeat, progress, resend_at;
    uint32_t retry_delay, resend_delay, hello_delay;
    /* Readings: a ring of samples, each as two bytes of length and its postcard. The first
     * has the seq `first`; `sent` was sent last, and what follows stands `unsent` bytes
     * behind the first. Nothing of the session was ever sent behind `highest`. */
    size_t head, used, unsent;
    uint64_t session, first, count, sent, highest, announced, given_up;
    size_t batch; /* on a serial line: the largest body of Readings */
    int doubted; /* a Welcome said more than can be */
    /* What the gateway said. */
    uint64_t interval, window, max_body;
    int asked, remind; /* a heartbeat is not answered; one is wanted at once */
    int knows_time;
    int64_t wall_offset; /* microseconds */
    struct {
        char id[TG_MAX_ID + 1], answer[TG_MAX_ANSWER];
        uint8_t used, finished, due, state;
        uint32_t age;
    } commands[TG_COMMANDS];
    uint32_t command_count;
    uint8_t in[10 + TG_MAX_BODY + 4], out[10 + TG_MAX_BODY + 4];
    size_t in_length, in_skip, out_length, out_at;
    uint64_t last_byte, begun; /* when the last byte came; when what `in` begins with did */
};

/* 1, or 0 if the configuration cannot work. */
int tg_init(struct tg_client *client, const struct tg_config *config);

/* Keeps a reading, taken now. 1, or 0 if there is no room or it is too large. */
int tg_record(struct tg_client *client, const struct tg_value *values, size_t count);

/* Does what there is to do, and returns after how many milliseconds to call it again at the
 * latest; earlier if bytes arrived, or a reading was recorded. */
uint32_t tg_poll(struct tg_client *client);

/* Says how a command ended that was for later; `answer` is JSON or NULL. 1, or 0 if no such
 * command is open or the answer is too long. */
int tg_finish(struct tg_client *client, const char *id, enum tg_result result, const char *answer);

/* Readings that are not acknowledged. */
uint64_t tg_kept(const struct tg_client *client);

/* Readings that were given up for newer ones. */
uint64_t tg_given_up(const struct tg_client *client);

/* Microseconds since 1970-01-01T00:00:00Z, or 0 if nobody said it yet who knew. */
int64_t tg_wall_time(struct tg_client *client);

/* Says Goodbye, once; tg_stopped() tells when that is done. Kept readings stay kept. */
void tg_stop(struct tg_client *client);
int tg_stopped(const struct tg_client *client);

#ifdef __cplusplus
}
#endif

#endif
