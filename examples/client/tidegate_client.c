#include "tidegate_client.h"
#include "sha256.h"
#include <string.h>

enum {
    HEADER = 10,
    CHECKSUM = 4,
    /* Types: bit 7 from the gateway, bits 6-4 encoding (postcard is 0), 3-0 message. */
    HELLO = 0x01, AUTHENTICATE = 0x02, READINGS = 0x03, HEARTBEAT = 0x04, COMMAND_RESULT = 0x05, GOODBYE = 0x06,
    CHALLENGE = 0x81, WELCOME = 0x82, ACK = 0x83, HEARTBEAT_REPLY = 0x84, COMMAND = 0x85, GATEWAY_GOODBYE = 0x86,
    REFUSED = 0x88,
    HELLO_MAX = 256,       /* what the gateway takes before its Welcome */
    MIN_DELAY = 1000,      /* ms between sessions, at first */
    MAX_DELAY = 60000,
    ANSWER_WITHIN = 5000,  /* ms for a connection, a Welcome, and on serial for an Ack */
    RESEND_AFTER = 1000,   /* serial, ms without an Ack: readings are sent again */
    MIN_BATCH = 32,        /* serial, bytes of Readings in a frame, if there are several */
    FRAME_TIMEOUT = 500,   /* serial, ms: a frame that does not go on is given up */
    STABLE_AFTER = 60000,  /* ms: a session that lasted so long was a good one */
    MAX_REST = 1000        /* ms: tg_poll() never asks for a longer rest */
};

static const uint8_t MAGIC[4] = {0x12, 0x34, 0x56, 0x7f};

/* ---- writing postcard ---------------------------------------------------------- */

struct writer { uint8_t *to; size_t size, length; int full; };

static void put_byte(struct writer *w, uint8_t byte)
{
    if (w->length < w->size)
        w->to[w->length++] = byte;
    else
        w->full = 1;
}

static void put_bytes(struct writer *w, const void *bytes, size_t count)
{
    for (const uint8_t *at = bytes; count > 0; count--)
        put_byte(w, *at++);
}

static void put_varint(struct writer *w, uint64_t n)
{
    for (; n >= 0x80; n >>= 7)
        put_byte(w, (uint8_t)(n | 0x80));
    put_byte(w, (uint8_t)n);
}

static void put_zigzag(struct writer *w, int64_t n)
{
    put_varint(w, ((uint64_t)n << 1) ^ (n < 0 ? UINT64_MAX : 0));
}

static void put_string(struct writer *w, const char *text)
{
    size_t length = strlen(text);
    put_varint(w, length);
    put_bytes(w, text, length);
}

static void put_option(struct writer *w, const char *text)
{
    put_byte(w, text != NULL);
    if (text)
        put_string(w, text);
}

static void put_f64(struct writer *w, double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits); /* an IEEE 754 double; where it has 4 bytes, convert it */
    for (int i = 0; i < 8; i++)
        put_byte(w, (uint8_t)(bits >> (8 * i)));
}

/* ---- reading postcard ---------------------------------------------------------- */

struct reader { uint8_t *at, *end; int bad; };

static uint64_t get_varint(struct reader *r)
{
    uint64_t n = 0;
    for (int shift = 0; shift < 64 && r->at < r->end; shift += 7) {
        uint8_t byte = *r->at++;
        n |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80)
            return n;
    }
    r->bad = 1;
    return 0;
}

static int64_t get_zigzag(struct reader *r)
{
    uint64_t n = get_varint(r);
    return (int64_t)(n >> 1) ^ -(int64_t)(n & 1);
}

struct slice { uint8_t *at; size_t length; };

static struct slice get_bytes(struct reader *r)
{
    struct slice slice = {r->at, 0};
    uint64_t length = get_varint(r);
    if (r->bad || length > (uint64_t)(r->end - r->at)) {
        r->bad = 1;
        return slice;
    }
    slice.at = r->at;
    slice.length = (size_t)length;
    r->at += slice.length;
    return slice;
}

/* Makes a C string of what was read. Only once all behind it is read: the terminator takes
 * the place of the byte that follows, of which there always is one, the checksum's. */
static char *terminated(struct slice slice)
{
    slice.at[slice.length] = 0;
    return (char *)slice.at;
}

/* ---- frames -------------------------------------------------------------------- */

static void put_u32(uint8_t *at, uint32_t n)
{
    for (int i = 0; i < 4; i++)
        at[i] = (uint8_t)(n >> (24 - 8 * i));
}

static uint32_t get_u32(const uint8_t *at)
{
    return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

/* CRC-32/ISO-HDLC, bit by bit; a table makes it faster. */
static uint32_t crc32(const uint8_t *bytes, size_t length)
{
    uint32_t crc = 0xffffffff;
    while (length--) {
        crc ^= *bytes++;
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? 0xedb88320 : 0);
    }
    return ~crc;
}

/* The body of the one frame that `out` holds; there must be none. */
static struct writer begin_frame(struct tg_client *c)
{
    struct writer body = {c->out + HEADER, TG_MAX_BODY, 0, 0};
    c->out_at = 0;
    return body;
}

static void end_frame(struct tg_client *c, uint8_t type, const struct writer *body)
{
    if (body->full)
        return; /* not with what was checked before it was kept */
    size_t length = HEADER + body->length;
    memcpy(c->out, MAGIC, 4);
    c->out[4] = 2; /* version */
    c->out[5] = type;
    put_u32(c->out + 6, (uint32_t)body->length);
    put_u32(c->out + length, crc32(c->out, length));
    c->out_length = length + CHECKSUM;
}

/* ---- time, chance, and the end of sessions -------------------------------------- */

static void look_at_clock(struct tg_client *c)
{
    uint32_t tick = c->config.transport.now_ms(c->config.transport.context);
    c->now += (uint32_t)(tick - c->tick);
    c->tick = tick;
}

/* xorshift64: good enough for pauses, and for a session id when one was used before. */
static uint64_t chance(struct tg_client *c)
{
    c->random ^= c->random << 13;
    c->random ^= c->random >> 7;
    c->random ^= c->random << 17;
    return c->random;
}

static void tell(struct tg_client *c, const char *what, const char *detail)
{
    if (c->config.log)
        c->config.log(c->config.log_context, what, detail);
}

static void shut(struct tg_client *c)
{
    if (c->config.transport.close)
        c->config.transport.close(c->config.transport.context);
    c->state = c->stopping ? TG_STOPPED : TG_CLOSED;
    c->in_length = c->in_skip = 0;
}

/* The session is over, and begins anew after a pause of different length for each device. */
static void pause_session(struct tg_client *c)
{
    if (c->state == TG_READY && c->now - c->established > STABLE_AFTER)
        c->retry_delay = MIN_DELAY;
    c->retry_at = c->now + c->retry_delay / 2 + chance(c) % c->retry_delay;
    if (!c->config.transport.serial) /* where no crowd would come back at once */
        c->retry_delay = c->retry_delay > MAX_DELAY / 2 ? MAX_DELAY : c->retry_delay * 2;
    c->out_length = c->out_at = 0;
}

/* The link is gone. */
static void lost(struct tg_client *c, const char *why)
{
    tell(c, why, "");
    pause_session(c);
    shut(c);
}

/* The session is over; a serial line stays open as long as it works. */
static void over(struct tg_client *c, const char *why, const char *detail)
{
    tell(c, why, detail);
    pause_session(c);
    if (c->config.transport.serial && !c->stopping)
        c->state = TG_OPEN;
    else
        shut(c);
}

/* ---- readings: kept until they are acknowledged --------------------------------- */

static size_t around(const struct tg_client *c, size_t at) { return at % c->config.memory_size; }

static size_t length_at(const struct tg_client *c, size_t behind_first)
{
    size_t at = around(c, c->head + behind_first);
    return (size_t)c->config.memory[at] << 8 | c->config.memory[around(c, at + 1)];
}

/* Whether the oldest reading may go: not if it is what the gateway waits for. */
static int may_give_up(const struct tg_client *c)
{
    int asking = c->state == TG_GREETED && !(c->config.transport.serial && c->now - c->greeted > MIN_DELAY);
    return c->config.give_up_oldest && c->count > 0 && !asking && (c->state != TG_READY || c->first <= c->sent);
}

static void forget_first(struct tg_client *c)
{
    size_t size = 2 + length_at(c, 0);
    c->head = around(c, c->head + size);
    c->used -= size;
    c->unsent -= c->unsent < size ? c->unsent : size;
    c->first++;
    c->count--;
}

/* Everything up to `seq` is safe with the gateway. */
static void settle(struct tg_client *c, uint64_t seq)
{
    if (c->first > seq)
        return;
    while (c->count > 0 && c->first <= seq)
        forget_first(c);
    if (c->sent + 1 < c->first)
        c->sent = c->first - 1;
    c->progress = c->now;
    c->retry_delay = MIN_DELAY;
    c->resend_delay = RESEND_AFTER;
    c->resend_at = c->now + RESEND_AFTER;
    c->batch = c->batch < TG_MAX_BODY - 8 ? c->batch + 8 : TG_MAX_BODY;
}

/* On a serial line readings were lost: sends them again, and what stands behind them. In
 * smaller frames, which noise hits less often; they grow again with each Ack. */
static void go_back(struct tg_client *c)
{
    c->sent = c->first - 1;
    c->unsent = 0;
    c->batch = c->batch / 2 > MIN_BATCH ? c->batch / 2 : MIN_BATCH;
    c->resend_at = c->now + c->resend_delay;
}

static void put_channel(struct writer *w, const struct tg_client *c, unsigned channel)
{
    put_byte(w, channel >= c->declared);
    if (channel < c->declared)
        put_varint(w, channel);
    else
        put_string(w, c->config.channels[channel].name);
}

int tg_record(struct tg_client *c, const struct tg_value *values, size_t count)
{
    uint8_t bytes[TG_MAX_SAMPLE];
    struct writer sample = {bytes, sizeof bytes, 0, 0};
    look_at_clock(c);
    put_zigzag(&sample, (int64_t)c->now);
    put_varint(&sample, count);
    for (; count > 0; count--, values++) {
        if (values->channel >= c->config.channel_count)
            return 0;
        put_channel(&sample, c, values->channel);
        put_byte(&sample, (uint8_t)values->type);
        switch (values->type) {
        case TG_FLOAT: put_f64(&sample, values->as.number); break;
        case TG_INTEGER: put_zigzag(&sample, values->as.integer); break;
        case TG_BOOLEAN: put_byte(&sample, values->as.boolean != 0); break;
        case TG_TEXT: put_string(&sample, values->as.text); break;
        }
    }
    size_t size = 2 + sample.length;
    if (sample.full || size > c->config.memory_size)
        return 0;
    while (c->config.memory_size - c->used < size) {
        if (!may_give_up(c))
            return 0;
        forget_first(c);
        c->given_up++;
    }
    size_t at = c->head + c->used;
    c->config.memory[around(c, at)] = (uint8_t)(sample.length >> 8);
    c->config.memory[around(c, at + 1)] = (uint8_t)sample.length;
    for (size_t i = 0; i < sample.length; i++)
        c->config.memory[around(c, at + 2 + i)] = bytes[i];
    c->used += size;
    c->count++;
    return 1;
}

/* Another numbering has used this session id: a new one, in which what is kept begins
 * with 1. */
static void restart_numbering(struct tg_client *c)
{
    c->session = chance(c);
    c->first = 1;
    c->sent = c->highest = 0;
}

/* ---- what the device says --------------------------------------------------------- */

static void put_hello(struct tg_client *c, struct writer *w, unsigned declared)
{
    put_string(w, c->config.device);
    put_varint(w, c->session);
    put_varint(w, 1); /* times are since boot */
    put_zigzag(w, (int64_t)c->now);
    put_option(w, c->config.firmware);
    put_varint(w, declared);
    for (unsigned i = 0; i < declared; i++) {
        put_varint(w, i);
        put_string(w, c->config.channels[i].name);
        put_option(w, c->config.channels[i].unit);
    }
    put_varint(w, c->first);
    put_varint(w, TG_MAX_BODY);
}

/* What came and was not read yet is not for the session that begins. */
static void flush_line(struct tg_client *c)
{
    const struct tg_transport *link = &c->config.transport;
    for (int i = 0; i < 16 && link->read(link->context, c->in, sizeof c->in) > 0; i++)
        ;
    c->in_length = c->in_skip = 0;
}

static void say_hello(struct tg_client *c)
{
    if (c->config.transport.serial)
        flush_line(c);
    struct writer body = begin_frame(c);
    put_hello(c, &body, c->declared);
    end_frame(c, HELLO, &body);
    c->state = TG_GREETED;
    c->greeted = c->now;
    c->announced = c->first;
}

static void authenticate(struct tg_client *c, const uint8_t *nonce, size_t length)
{
    static const char version[] = "tidegate-hmac-v1"; /* with its terminator */
    uint8_t session[9] = {0}, proof[32];
    struct hmac hmac;
    put_u32(session + 1, (uint32_t)(c->session >> 32));
    put_u32(session + 5, (uint32_t)c->session);
    hmac_begin(&hmac, c->config.secret, 32);
    hmac_add(&hmac, version, sizeof version);
    hmac_add(&hmac, nonce, length);
    hmac_add(&hmac, c->config.device, strlen(c->config.device));
    hmac_add(&hmac, session, sizeof session); /* a zero byte first */
    hmac_end(&hmac, proof);

    struct writer body = begin_frame(c);
    put_string(&body, c->config.key);
    put_varint(&body, sizeof proof);
    put_bytes(&body, proof, sizeof proof);
    end_frame(c, AUTHENTICATE, &body);
}

static void send_heartbeat(struct tg_client *c)
{
    struct writer body = begin_frame(c);
    put_zigzag(&body, (int64_t)c->now);
    end_frame(c, HEARTBEAT, &body);
    c->heartbeat = c->now;
    c->asked = 1;
    c->remind = 0;
}

static int send_answer(struct tg_client *c)
{
    for (int i = 0; i < TG_COMMANDS; i++) {
        if (!c->commands[i].due)
            continue;
        struct writer body = begin_frame(c);
        put_string(&body, c->commands[i].id);
        put_byte(&body, c->commands[i].state);
        put_option(&body, *c->commands[i].answer ? c->commands[i].answer : NULL);
        end_frame(c, COMMAND_RESULT, &body);
        c->commands[i].due = 0;
        return 1;
    }
    return 0;
}

static int send_readings(struct tg_client *c)
{
    const int serial = c->config.transport.serial;
    uint64_t outstanding = c->sent + 1 - c->first;
    if (serial && c->unsent >= TG_MAX_OUTSTANDING)
        return 0; /* if a frame was lost, all that follows it is sent for nothing */
    size_t room = c->max_body < TG_MAX_BODY ? (size_t)c->max_body : TG_MAX_BODY;
    size_t bytes = 10 + 1 + 3; /* seq, no sub-device, number of samples */
    uint64_t samples = 0;
    for (size_t at = c->unsent; at < c->used && outstanding + samples < c->window; samples++) {
        size_t length = length_at(c, at);
        if (bytes + length > room || (serial && samples > 0 && bytes + length > c->batch))
            break;
        bytes += length;
        at += 2 + length;
    }
    if (samples == 0)
        return 0;
    struct writer body = begin_frame(c);
    put_varint(&body, c->sent + 1);
    put_byte(&body, 0);
    put_varint(&body, samples);
    c->sent += samples;
    for (; samples > 0; samples--) {
        size_t length = length_at(c, c->unsent);
        for (size_t i = 0; i < length; i++)
            put_byte(&body, c->config.memory[around(c, c->head + c->unsent + 2 + i)]);
        c->unsent += 2 + length;
    }
    end_frame(c, READINGS, &body);
    if (outstanding == 0 && c->sent > c->highest) { /* else they are sent again */
        c->progress = c->now;
        c->resend_at = c->now + c->resend_delay;
    }
    if (c->sent > c->highest)
        c->highest = c->sent;
    return 1;
}

static void send_goodbye(struct tg_client *c)
{
    struct writer body = begin_frame(c);
    put_varint(&body, 0); /* normal */
    put_string(&body, "");
    end_frame(c, GOODBYE, &body);
}

/* Puts the next frame together, if there is one to send. */
static int next_frame(struct tg_client *c)
{
    if (c->state != TG_READY)
        return 0;
    if (send_answer(c))
        return 1;
    /* Also while readings flow: the gateway compares the clocks at each heartbeat. */
    if (c->remind || c->now - c->heartbeat >= c->interval * 8 / 10) {
        send_heartbeat(c);
        return 1;
    }
    if (c->stopping == 1) {
        send_goodbye(c);
        c->stopping = 2;
        return 1;
    }
    return send_readings(c);
}

static void transmit(struct tg_client *c)
{
    const struct tg_transport *link = &c->config.transport;
    while (c->state == TG_GREETED || c->state == TG_READY) {
        if (c->out_at == c->out_length) {
            c->out_at = c->out_length = 0;
            if (c->stopping == 2) {
                shut(c); /* the Goodbye is out */
                return;
            }
            if (!next_frame(c))
                return;
        }
        int written = link->write(link->context, c->out + c->out_at, c->out_length - c->out_at);
        if (written < 0) {
            lost(c, "the link is gone");
            return;
        }
        if (written == 0)
            return;
        c->out_at += (size_t)written;
    }
}

/* ---- commands --------------------------------------------------------------------- */

static int find_command(const struct tg_client *c, const char *id)
{
    for (int i = 0; i < TG_COMMANDS; i++)
        if (c->commands[i].used && !strcmp(c->commands[i].id, id))
            return i;
    return -1;
}

/* A place for a new command: that of the oldest that is finished. */
static int free_place(const struct tg_client *c)
{
    int place = -1;
    for (int i = 0; i < TG_COMMANDS; i++) {
        if (!c->commands[i].used)
            return i;
        if (c->commands[i].finished && !c->commands[i].due
            && (place < 0 || c->commands[i].age < c->commands[place].age))
            place = i;
    }
    return place;
}

int tg_finish(struct tg_client *c, const char *id, enum tg_result result, const char *answer)
{
    int i = find_command(c, id);
    size_t length = answer ? strlen(answer) : 0;
    if (i < 0 || c->commands[i].finished || result == TG_LATER || length >= TG_MAX_ANSWER)
        return 0;
    memmove(c->commands[i].answer, answer ? answer : "", length + 1);
    c->commands[i].state = (uint8_t)result;
    c->commands[i].finished = c->commands[i].due = 1;
    return 1;
}

static void take_command(struct tg_client *c, const struct tg_command *command)
{
    int i = find_command(c, command->id);
    if (i >= 0) { /* repeated: it is answered again, and not done again */
        c->commands[i].due = c->commands[i].finished;
        return;
    }
    i = free_place(c);
    if (i < 0 || strlen(command->id) > TG_MAX_ID)
        return; /* the gateway repeats it */
    memset(&c->commands[i], 0, sizeof c->commands[i]);
    strcpy(c->commands[i].id, command->id);
    c->commands[i].used = 1;
    c->commands[i].age = c->command_count++;
    char answer[TG_MAX_ANSWER] = "";
    enum tg_result result = TG_REJECTED;
    if (c->config.command)
        result = c->config.command(c->config.command_context, command, answer);
    if (result != TG_LATER)
        tg_finish(c, command->id, result, answer);
}

/* ---- what the gateway says --------------------------------------------------------- */

static void set_clock(struct tg_client *c, int64_t time, uint64_t trusted, uint64_t round_trip)
{
    const int64_t year_10000 = 253402300800000000;
    if (!trusted || time <= 0 || time > year_10000)
        return;
    c->wall_offset = time + (int64_t)(round_trip * 500) - (int64_t)(c->now * 1000);
    c->knows_time = 1;
}

static void take_welcome(struct tg_client *c, struct reader *r)
{
    uint64_t settled = get_varint(r);
    int64_t time = get_zigzag(r);
    uint64_t trusted = get_varint(r);
    uint64_t interval = get_varint(r), max_body = get_varint(r), window = get_varint(r);
    int named = r->at < r->end && get_varint(r) == 1; /* older gateways do not name the session */
    uint64_t session = named ? get_varint(r) : c->session;
    if (r->bad || interval == 0 || interval > UINT32_MAX)
        return;
    if (session != c->session)
        return; /* it answers an earlier Hello on this line */
    if (settled > c->highest) {
        /* No reading may be forgotten that was never sent. */
        if (c->config.transport.serial && !named && !c->doubted) {
            c->doubted = 1; /* maybe likewise; if it is, the right one follows */
            return;
        }
        c->doubted = 0;
        restart_numbering(c);
        over(c, "the session id was used before", "");
        return;
    }
    c->doubted = 0;
    c->interval = interval * 1000;
    c->max_body = max_body;
    c->window = window;
    set_clock(c, time, trusted, c->now - c->greeted);
    settle(c, settled);
    if (c->first > settled + 1 && c->first > c->announced) {
        say_hello(c); /* on a serial line: readings were given up meanwhile */
        return;
    }
    /* Everything that is kept is sent again. Settled may be lower than what was acknowledged
     * and forgotten, or given up: Hello said so. */
    c->sent = c->first - 1;
    c->unsent = 0;
    c->state = TG_READY;
    c->asked = c->remind = 0;
    c->established = c->heartbeat = c->progress = c->now;
    c->resend_delay = c->hello_delay = RESEND_AFTER;
    c->resend_at = c->now + RESEND_AFTER;
    tell(c, "welcomed", "");
}

static void take_ack(struct tg_client *c, uint64_t seq)
{
    if (seq >= c->first)
        settle(c, seq);
    else if (!c->config.transport.serial || c->sent < c->first)
        return; /* it came twice */
    else if (seq + 1 == c->first)
        go_back(c); /* repeated, it asks for what stands behind it */
    else
        over(c, "the gateway waits for readings that were given up", "");
}

static void take_goodbye(struct tg_client *c, uint8_t type, struct reader *r)
{
    enum { PROTOCOL = 4, TAKEN_OVER = 6, UNAUTHORIZED = 7 };
    if (type != GATEWAY_GOODBYE) { /* it counts in any encoding */
        over(c, "the gateway said Goodbye", "");
        return;
    }
    uint64_t reason = get_varint(r);
    struct slice text = get_bytes(r);
    over(c, "the gateway said Goodbye", r->bad ? "" : terminated(text));
    if (!r->bad && !c->config.transport.serial
        && (reason == PROTOCOL || reason == TAKEN_OVER || reason == UNAUTHORIZED)) {
        c->retry_delay = MAX_DELAY; /* it does not heal soon */
        c->retry_at = c->now + MAX_DELAY / 2 + chance(c) % MAX_DELAY;
    }
}

static void take_message(struct tg_client *c, uint8_t type, struct reader r)
{
    if (type < 0x80)
        return; /* what this device said, on a line that brings it back */
    if ((type & 0x8f) == GATEWAY_GOODBYE) {
        if (c->state == TG_GREETED || c->state == TG_READY)
            take_goodbye(c, type, &r);
        return;
    }
    /* Before the Welcome, what is none of these belongs to an earlier session. */
    if (c->state == TG_GREETED && type == CHALLENGE) {
        struct slice nonce = get_bytes(&r);
        if (!c->config.key || !c->config.secret)
            over(c, "the gateway wants a key, and there is none", "");
        else if (!r.bad && c->out_at == c->out_length)
            authenticate(c, nonce.at, nonce.length);
    } else if (c->state == TG_GREETED && type == WELCOME) {
        c->heard = c->now;
        take_welcome(c, &r);
    } else if (c->state == TG_READY) {
        c->heard = c->now;
        if (type == ACK) {
            uint64_t seq = get_varint(&r);
            if (!r.bad && seq <= c->highest)
                take_ack(c, seq);
        } else if (type == HEARTBEAT_REPLY) {
            int64_t time = get_zigzag(&r);
            uint64_t trusted = get_varint(&r);
            if (!r.bad)
                set_clock(c, time, trusted, c->asked ? c->now - c->heartbeat : 0);
            c->remind = !c->asked; /* unasked, it asks whether this device is still there */
            c->asked = 0;
        } else if (type == COMMAND) {
            struct tg_command command = {NULL, NULL, NULL, -1};
            struct slice id = get_bytes(&r), name = get_bytes(&r), payload = {NULL, 0};
            if (get_varint(&r))
                payload = get_bytes(&r);
            if (get_varint(&r)) {
                uint64_t left = get_varint(&r);
                command.expires_in = left > INT64_MAX ? INT64_MAX : (int64_t)left;
            }
            if (r.bad)
                return;
            command.id = terminated(id);
            command.name = terminated(name);
            command.payload = payload.at ? terminated(payload) : NULL;
            take_command(c, &command);
        } else if (type == REFUSED) {
            uint64_t seq = get_varint(&r), count = get_varint(&r);
            struct slice text = get_bytes(&r);
            if (!r.bad && seq > 0 && count > 0) /* they are settled: an Ack follows */
                tell(c, "readings were refused", terminated(text));
        }
        /* What is unknown is ignored. */
    }
}

static void drop(struct tg_client *c, size_t count)
{
    c->in_length -= count;
    memmove(c->in, c->in + count, c->in_length);
    c->begun = c->now;
}

/* Skips what is no frame: goes on at the next byte that may begin one, never behind a
 * length that may be wrong. */
static void skip(struct tg_client *c)
{
    size_t at = 1;
    while (at < c->in_length && c->in[at] != MAGIC[0])
        at++;
    drop(c, at);
}

enum found { NO_FRAME, PART_OF_A_FRAME, A_FRAME, TOO_LARGE };

/* What `in` begins with from `at` on. */
static enum found find_frame(const struct tg_client *c, size_t at, size_t *size)
{
    const uint8_t *in = c->in + at;
    size_t there = c->in_length - at;
    if (memcmp(in, MAGIC, there < 4 ? there : 4) != 0)
        return NO_FRAME;
    if (there < HEADER)
        return PART_OF_A_FRAME;
    uint32_t length = get_u32(in + 6);
    if (in[4] != 2 || length > 1 << 20) /* the gateway answers in our version */
        return NO_FRAME;
    *size = HEADER + (size_t)length + CHECKSUM;
    if (length > TG_MAX_BODY)
        return TOO_LARGE;
    if (there < *size)
        return PART_OF_A_FRAME;
    return crc32(in, HEADER + length) == get_u32(in + HEADER + length) ? A_FRAME : NO_FRAME;
}

static void take_frames(struct tg_client *c)
{
    const int serial = c->config.transport.serial;
    while (c->in_length > 0) {
        size_t size = 0;
        switch (find_frame(c, 0, &size)) {
        case PART_OF_A_FRAME:
            return;
        case A_FRAME: {
            struct reader body = {c->in + HEADER, c->in + size - CHECKSUM, 0};
            take_message(c, c->in[5], body);
            if (c->in_length > 0) /* else the link was closed */
                drop(c, size);
            break;
        }
        case TOO_LARGE:
            if (!serial) { /* its length can be believed */
                tell(c, "a message is larger than TG_MAX_BODY", "");
                c->in_skip = size - c->in_length;
                c->in_length = 0;
                return;
            }
            skip(c);
            break;
        case NO_FRAME:
            if (!serial) {
                over(c, "the gateway sent what is no frame", "");
                return;
            }
            skip(c);
            break;
        }
    }
}

/* A frame that takes so long has a wrong length if a whole one stands in it. */
static void look_inside(struct tg_client *c)
{
    size_t size;
    for (size_t at = 1; at < c->in_length; at++)
        if (find_frame(c, at, &size) == A_FRAME) {
            drop(c, at);
            take_frames(c);
            return;
        }
    c->begun = c->now;
}

static void receive(struct tg_client *c)
{
    const struct tg_transport *link = &c->config.transport;
    if (link->serial && c->in_length > 0 && c->now - c->last_byte > FRAME_TIMEOUT) {
        /* The rest of a frame that is not coming must hide no other; what else has begun is
         * given up with it, for all have waited since the same byte. */
        do {
            skip(c);
            take_frames(c);
        } while (c->in_length > 0);
    } else if (link->serial && c->in_length > 0 && c->now - c->begun > FRAME_TIMEOUT) {
        look_inside(c);
    }
    while (c->state == TG_OPEN || c->state == TG_GREETED || c->state == TG_READY) {
        /* There is room: what fills the buffer is a frame, or skipped. */
        size_t room = sizeof c->in - c->in_length;
        int got = link->read(link->context, c->in + c->in_length, room);
        if (got < 0) {
            lost(c, "the link is gone");
            return;
        }
        if (got == 0)
            return;
        c->last_byte = c->now;
        if (c->in_length == 0)
            c->begun = c->now;
        size_t skipped = c->in_skip < (size_t)got ? c->in_skip : (size_t)got;
        memmove(c->in, c->in + skipped, (size_t)got - skipped);
        c->in_skip -= skipped;
        c->in_length += (size_t)got - skipped;
        take_frames(c);
    }
}

/* ---- the session --------------------------------------------------------------------- */

static void open_link(struct tg_client *c)
{
    const struct tg_transport *link = &c->config.transport;
    int opened = link->open ? link->open(link->context) : 1;
    if (opened > 0) {
        c->state = TG_OPEN;
        c->opening = 0;
    } else if (opened < 0) {
        c->opening = 0;
        lost(c, "the gateway cannot be reached");
    } else if (c->opening == 0) {
        c->opening = c->now + 1; /* 0 is never */
    } else if (c->now - c->opening > ANSWER_WITHIN) {
        c->opening = 0;
        lost(c, "the gateway cannot be reached in time");
    }
}

/* Whether an Ack that does not come is a sign that something was lost. */
static int awaits_ack(const struct tg_client *c)
{
    return c->state == TG_READY && c->config.transport.serial && c->highest >= c->first;
}

static void not_welcomed(struct tg_client *c)
{
    c->hello_delay = c->hello_delay > ANSWER_WITHIN / 2 ? ANSWER_WITHIN : c->hello_delay * 2;
    over(c, "no Welcome came", "");
}

static void check_time(struct tg_client *c)
{
    const uint64_t patience = c->config.transport.serial ? c->hello_delay : ANSWER_WITHIN;
    if (c->state == TG_GREETED && c->now - c->greeted > patience)
        not_welcomed(c);
    else if (c->state == TG_READY && c->now - c->heard > 2 * c->interval)
        over(c, "the gateway is silent", "");
    else if (awaits_ack(c) && c->now - c->progress > ANSWER_WITHIN)
        over(c, "no Ack came: Readings or Ack were lost", "");
    else if (awaits_ack(c) && c->now >= c->resend_at) {
        c->resend_delay *= 2; /* a gateway whose disk is slow need not get it all again and again */
        go_back(c);
    }
}

/* How long until there is something to do even if nothing arrives. */
static uint32_t rest(const struct tg_client *c)
{
    uint64_t until = c->now + MAX_REST;
    if ((c->state == TG_CLOSED || c->state == TG_OPEN) && c->retry_at < until)
        until = c->opening ? c->now + 10 : c->retry_at;
    if (c->state == TG_READY && c->heartbeat + c->interval * 8 / 10 < until)
        until = c->heartbeat + c->interval * 8 / 10;
    if (awaits_ack(c) && c->resend_at < until)
        until = c->resend_at;
    if (c->in_length > 0 && c->last_byte + FRAME_TIMEOUT + 1 < until)
        until = c->last_byte + FRAME_TIMEOUT + 1;
    if (c->out_at < c->out_length)
        until = c->now + 1; /* the link takes no more now */
    return until > c->now ? (uint32_t)(until - c->now) : 0;
}

uint32_t tg_poll(struct tg_client *c)
{
    look_at_clock(c);
    if (c->stopping && c->state != TG_READY && c->state != TG_STOPPED)
        shut(c);
    if (c->state == TG_STOPPED)
        return MAX_REST;
    if (c->state == TG_CLOSED && c->now >= c->retry_at)
        open_link(c);
    if (c->state == TG_OPEN && c->now >= c->retry_at)
        say_hello(c);
    receive(c);
    check_time(c);
    transmit(c);
    return rest(c);
}

/* ---- the rest ------------------------------------------------------------------------- */

int tg_init(struct tg_client *c, const struct tg_config *config)
{
    if (!config->transport.read || !config->transport.write || !config->transport.now_ms || !config->device
        || !config->memory || config->memory_size == 0 || config->session == 0)
        return 0;
    memset(c, 0, sizeof *c);
    c->config = *config;
    c->state = TG_CLOSED;
    c->session = c->random = config->session;
    c->first = 1;
    c->retry_delay = MIN_DELAY;
    c->batch = TG_MAX_BODY;
    c->hello_delay = RESEND_AFTER;
    c->tick = config->transport.now_ms(config->transport.context);
    c->now = c->tick;
    /* As many channels are declared as a Hello has room for at its largest; the others are
     * named in each reading. */
    uint8_t bytes[HELLO_MAX];
    for (c->declared = config->channel_count;; c->declared--) {
        struct writer body = {bytes, sizeof bytes - 20, 0, 0}; /* time and first may grow */
        put_hello(c, &body, c->declared);
        if (!body.full)
            return 1;
        if (c->declared == 0)
            return 0;
    }
}

uint64_t tg_kept(const struct tg_client *c) { return c->count; }

uint64_t tg_given_up(const struct tg_client *c) { return c->given_up; }

int64_t tg_wall_time(struct tg_client *c)
{
    look_at_clock(c);
    return c->knows_time ? (int64_t)(c->now * 1000) + c->wall_offset : 0;
}

void tg_stop(struct tg_client *c)
{
    if (!c->stopping)
        c->stopping = 1;
}

int tg_stopped(const struct tg_client *c) { return c->state == TG_STOPPED; }

struct tg_value tg_float(unsigned channel, double number)
{
    struct tg_value value = {channel, TG_FLOAT, {0}};
    value.as.number = number;
    return value;
}

struct tg_value tg_integer(unsigned channel, int64_t integer)
{
    struct tg_value value = {channel, TG_INTEGER, {0}};
    value.as.integer = integer;
    return value;
}

struct tg_value tg_boolean(unsigned channel, int boolean)
{
    struct tg_value value = {channel, TG_BOOLEAN, {0}};
    value.as.boolean = boolean;
    return value;
}

struct tg_value tg_text(unsigned channel, const char *text)
{
    struct tg_value value = {channel, TG_TEXT, {0}};
    value.as.text = text;
    return value;
}
