/* The native socket reader of a load worker: one thread that needs neither the Python interpreter
   nor its lock.

   It stamps each read, keeps the bytes as they arrived, and finds the end of a plain chunked
   response. At that moment it sends the connection's next request, if one is prepared, and notifies
   Python. It also sends the scheduled requests of an open loop on idle connections. Python does the
   rest: it interprets the responses, and it takes over every response that is not plain.

   Only loadtests/client/native.py compiles and calls this file. It defines the constants of
   loadtests/client/limits.py on the compiler's command line, and mirrors the three structures that
   are marked "mirrored". All reader_* functions must be called from one thread.
   Times are CLOCK_MONOTONIC, in seconds. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#ifndef TICK_S
#error "compile this with the constants of loadtests/client/limits.py"
#endif

#define MAX_RESPONSE_BYTES (1 << 20) /* a longer response is handed to Python */
#define MAX_REUSED_BYTES (1 << 18)   /* larger buffers are freed, not reused */
#define MAX_STALLS 1024
#define MAX_SCHEDULED 1024

/* ---- Types ----------------------------------------------------------------------------------- */

/* One read: after it the response had `end` bytes. We saw them `lag_s` after the kernel did. */
struct read {
    double arrived_s, lag_s;
    int64_t end;
};

/* Mirrored. The received part of one response, and the request that was sent at its end.

   If `reason` is ENDED, `data` holds `head_bytes` of head followed by `bytes` of body without the
   chunked encoding, and the ends of the reads count body bytes. Otherwise `data` holds `bytes` as
   they arrived. */
struct response {
    int64_t connection, reason; /* ENDED, MORE, CLOSED, or minus errno */
    int64_t bytes, head_bytes, read_count;
    int64_t next_number; /* of the request that was sent at the end, or -1 */
    double next_sent_s;
    int64_t next_unsent; /* bytes of it that the kernel did not take */
    char *data;
    struct read *reads;
    struct connection *from;
    struct response *next;
    int64_t data_room, read_room;
};

/* One connection. Never freed but reused: an epoll event may still point to it. */
struct connection {
    int handle, watched, idle;
    int unreported; /* responses that Python has not fetched yet */
    int64_t id;
    int64_t position; /* start of the next chunk in the response; 0: still in the head */
    struct response *response;
    char *before, *after; /* the prepared request, around its number */
    int64_t before_bytes, after_bytes, before_room; /* before_bytes is 0 if none is prepared */
    struct connection *next;
};

/* Mirrored. A request to send at `at_s`, in the order in which requests were scheduled.
   `connection` and `number` are -1 if no connection was idle: then Python sends it. Python owns the
   text and keeps it until it has fetched the outcome. */
struct scheduled {
    double at_s, sent_s;
    const char *before, *after; /* around its number */
    int64_t before_bytes, after_bytes, connection, number, unsent;
};

/* Mirrored. C and Python read and write these fields without the lock. */
struct shared {
    int64_t sent;      /* requests */
    int64_t bytes;     /* received */
    double until_s;    /* prepared requests are not sent later */
    int64_t thread_id;
};

static struct shared shared;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int poll_handle, notify_handle, tick_handle, schedule_handle;

static struct { double start_s, end_s; } stalls[MAX_STALLS];
static int stall_count;

static struct connection *unused;
static struct connection *idle; /* a stack: the most recently used connection is used next */

/* Spare responses are reused: allocating on one thread and freeing on another fragments memory. */
static struct response *spare;
static struct response *first_response, **last_response = &first_response; /* not yet fetched */

/* A ring: [fetched, handled) are outcomes for Python to fetch, [handled, end) are not sent yet. */
static struct scheduled schedule[MAX_SCHEDULED];
static int64_t schedule_fetched, schedule_handled, schedule_end;

static double now(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

/* ---- Connections and responses: allocate and reuse ------------------------------------------- */

static struct response *new_response(struct connection *connection) {
    struct response *response = spare;
    if (response) {
        spare = response->next;
    } else {
        if (!(response = malloc(sizeof *response))) abort();
        response->data_room = 2 * READ_BYTES, response->read_room = 160;
        response->data = malloc(response->data_room);
        response->reads = malloc(response->read_room * sizeof *response->reads);
        if (!response->data || !response->reads) abort();
    }
    *response = (struct response){
        .connection = connection->id, .from = connection, .reason = MORE, .next_number = -1,
        .data = response->data, .data_room = response->data_room,
        .reads = response->reads, .read_room = response->read_room};
    return response;
}

static void free_response(struct response *response) {
    if (response->data_room <= MAX_REUSED_BYTES) {
        response->next = spare;
        spare = response;
        return;
    }
    free(response->data);
    free(response->reads);
    free(response);
}

static struct connection *new_connection(int handle, int64_t id) {
    struct connection *connection = unused;
    if (connection) unused = connection->next;
    else if (!(connection = calloc(1, sizeof *connection))) abort();
    *connection = (struct connection){.handle = handle, .id = id, .before = connection->before,
                                      .before_room = connection->before_room};
    return connection;
}

static void release_connection(struct connection *connection) {
    connection->next = unused;
    unused = connection;
}

/* Starts to read a response. Returns 0, or minus errno if epoll refuses. */
static int watch_connection(struct connection *connection) {
    struct epoll_event wanted = {.events = EPOLLIN, .data.ptr = connection};
    connection->response = new_response(connection);
    connection->position = 0;
    connection->watched = !epoll_ctl(poll_handle, EPOLL_CTL_ADD, connection->handle, &wanted);
    return connection->watched ? 0 : -errno;
}

static void unwatch_connection(struct connection *connection) {
    if (connection->watched) epoll_ctl(poll_handle, EPOLL_CTL_DEL, connection->handle, NULL);
    connection->watched = 0;
}

/* ---- HTTP/1.1: the end of a plain chunked response ------------------------------------------- */

/* Parses the line with a chunk's size that starts at `position`. Returns where the line ends, 0
   if it is incomplete, or -1 if it is not plain. */
static int64_t parse_chunk_size(const char *data, int64_t bytes, int64_t position, int64_t *size) {
    int64_t value = 0, at = position;
    for (; at < bytes && at < position + 7; at++) {
        char c = data[at];
        int digit = c >= '0' && c <= '9'   ? c - '0'
                    : c >= 'a' && c <= 'f' ? c - 'a' + 10
                    : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                           : -1;
        if (digit < 0) break;
        value = value * 16 + digit;
    }
    if (at == bytes) return 0;
    if (at == position || data[at] != '\r') return -1;
    if (at + 1 == bytes) return 0;
    *size = value;
    return data[at + 1] == '\n' ? at + 2 : -1;
}

/* Whether Python will certainly accept this head, which ends with the empty line at `end`. The next
   request is sent before Python has read the response, so a doubtful head is not plain. */
static int has_plain_head(char *data, char *end) {
    char saved = end[2];
    end[2] = 0;
    int plain = !strncmp(data, "HTTP/1.1 200 ", 13)
                && strlen(data) == (size_t)(end + 2 - data)
                && strcasestr(data, "\r\ntransfer-encoding: chunked\r\n")
                && !strcasestr(data, "content-encoding") && !strcasestr(data, "content-length")
                && (!strcasestr(data, "\r\nconnection:")
                    || strcasestr(data, "\r\nconnection: keep-alive\r\n"));
    end[2] = saved;
    return plain;
}

/* Examines the received bytes. Returns ENDED, MORE if Python must read on, or -1 to wait. */
static int find_end(struct connection *connection) {
    struct response *response = connection->response;
    char *data = response->data;
    int64_t bytes = response->bytes;
    if (!connection->position) {
        char *end = memmem(data, bytes, "\r\n\r\n", 4);
        if (!end) return bytes > READ_BYTES ? MORE : -1;
        if (!has_plain_head(data, end)) return MORE;
        connection->position = response->head_bytes = end + 4 - data;
    }
    while (connection->position < bytes) {
        int64_t size = 0, start = parse_chunk_size(data, bytes, connection->position, &size);
        if (start < 0) return MORE;
        if (!start || start + size + 2 > bytes) break;
        /* Python handles trailers. */
        if (data[start + size] != '\r' || data[start + size + 1] != '\n') return MORE;
        connection->position = start + size + 2;
        if (!size) return ENDED;
    }
    return bytes > MAX_RESPONSE_BYTES ? MORE : -1;
}

/* Removes the chunked encoding from an ENDED response, and the reads that brought only the head. It
   runs on Python's thread without the lock, so reading continues. */
static struct response *remove_chunks(struct response *response) {
    if (!response || response->reason != ENDED) return response;
    struct read *read = response->reads, *last = read + response->read_count, *kept = read;
    char *body = response->data + response->head_bytes;
    int64_t length = 0, size = 1;
    while (read < last && read->end <= response->head_bytes) read++;
    for (int64_t position = response->head_bytes; size; position += size + 2) {
        position = parse_chunk_size(response->data, response->bytes, position, &size);
        for (; read < last && read->end <= position + size; *kept++ = *read++)
            read->end = length + (read->end > position ? read->end - position : 0);
        memmove(body + length, response->data + position, size);
        length += size;
    }
    for (; read < last; *kept++ = *read++) read->end = length;
    response->read_count = kept - response->reads;
    response->bytes = length;
    return response;
}

/* ---- Sending --------------------------------------------------------------------------------- */

/* Sends a request and sets its `number`. Returns how many bytes the kernel did not take. */
static int64_t send_numbered(int handle, const char *before, int64_t before_bytes,
                             const char *after, int64_t after_bytes, int64_t *number) {
    char text[24];
    int digits = sprintf(text, "%012lld", (long long)(*number = shared.sent++));
    struct iovec parts[3] = {
        {(char *)before, before_bytes}, {text, digits}, {(char *)after, after_bytes}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 3};
    ssize_t sent = sendmsg(handle, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    return before_bytes + digits + after_bytes - (sent < 0 ? 0 : sent);
}

static void send_prepared(struct connection *connection, struct response *response) {
    response->next_sent_s = now(CLOCK_MONOTONIC);
    if (response->next_sent_s > shared.until_s) return;
    response->next_unsent =
        send_numbered(connection->handle, connection->before, connection->before_bytes,
                      connection->after, connection->after_bytes, &response->next_number);
}

static void queue_response(struct connection *connection, struct response *response) {
    *last_response = response;
    last_response = &response->next;
    connection->unreported++;
}

/* Whether a request is due, or due so soon that sleeping until then would be too coarse. */
static int is_due_soon(void) {
    return schedule_handled < schedule_end
           && schedule[schedule_handled % MAX_SCHEDULED].at_s - WAKE_EARLY_S
                  <= now(CLOCK_MONOTONIC);
}

/* Sets the timer to shortly before the next scheduled request, or stops it. */
static void set_schedule_timer(void) {
    double at_s = 0;
    if (schedule_handled < schedule_end)
        at_s = schedule[schedule_handled % MAX_SCHEDULED].at_s - WAKE_EARLY_S;
    if (at_s < 0) at_s = 1e-9;
    struct itimerspec when = {.it_value = {at_s, (at_s - (int64_t)at_s) * 1e9}};
    timerfd_settime(schedule_handle, TFD_TIMER_ABSTIME, &when, NULL);
}

/* Whether the server has closed its end of an idle connection. */
static int is_closed_by_peer(int handle) {
    char byte;
    ssize_t received = recv(handle, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    return received == 0 || (received < 0 && errno != EAGAIN && errno != EWOULDBLOCK);
}

/* Sends every request that is due. Returns whether Python must be notified at once: no connection
   was idle, the server has closed it, or it cannot be read. Other outcomes wait for the next
   tick. */
static int send_due(void) {
    int any = 0, notify = 0;
    for (; schedule_handled < schedule_end; schedule_handled++, any = 1) {
        struct scheduled *next = &schedule[schedule_handled % MAX_SCHEDULED];
        if (next->at_s > now(CLOCK_MONOTONIC)) break;
        struct connection *connection = idle;
        int failed;
        next->connection = next->number = -1;
        if (!connection || is_closed_by_peer(connection->handle)) {
            notify = 1; /* Python opens a connection and sends the request */
            continue;
        }
        idle = connection->next;
        connection->idle = 0;
        next->connection = connection->id;
        next->sent_s = now(CLOCK_MONOTONIC);
        next->unsent = send_numbered(connection->handle, next->before, next->before_bytes,
                                     next->after, next->after_bytes, &next->number);
        if ((failed = watch_connection(connection))) {
            connection->response->reason = failed;
            queue_response(connection, connection->response);
            connection->response = NULL;
            notify = 1;
        }
    }
    if (any && !is_due_soon()) set_schedule_timer();
    return notify;
}

/* ---- Reading --------------------------------------------------------------------------------- */

static void make_room(struct response *response) {
    if (response->data_room - response->bytes < READ_BYTES) {
        response->data = realloc(response->data, response->data_room *= 2);
        if (!response->data) abort();
    }
    if (response->read_count == response->read_room) {
        response->read_room *= 2;
        response->reads = realloc(response->reads, response->read_room * sizeof *response->reads);
        if (!response->reads) abort();
    }
}

/* Converts the kernel's wall-clock stamp to CLOCK_MONOTONIC. `seen_s` is the time just after the
   read. */
static struct read stamp_read(struct msghdr *message, double seen_s) {
    struct cmsghdr *stamp = CMSG_FIRSTHDR(message);
    if (!stamp) return (struct read){.arrived_s = seen_s};
    struct timespec arrived, wall;
    clock_gettime(CLOCK_REALTIME, &wall);
    /* If the thread lost its core between the two clocks, read both again. */
    while (now(CLOCK_MONOTONIC) - seen_s > CLOCK_TOLERANCE_S) {
        seen_s = now(CLOCK_MONOTONIC);
        clock_gettime(CLOCK_REALTIME, &wall);
    }
    memcpy(&arrived, CMSG_DATA(stamp), sizeof arrived);
    double age_s = (wall.tv_sec - arrived.tv_sec) + (wall.tv_nsec - arrived.tv_nsec) * 1e-9;
    if (age_s < 0 || age_s >= MAX_STAMP_AGE_S) return (struct read){.arrived_s = seen_s};
    return (struct read){.arrived_s = seen_s - age_s, .lag_s = age_s};
}

/* Reads once from a connection. Returns whether Python must be notified. */
static int read_connection(struct connection *connection) {
    struct response *response = connection->response;
    make_room(response);
    char control[64];
    struct iovec part = {response->data + response->bytes, READ_BYTES};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1,
                             .msg_control = control, .msg_controllen = sizeof control};
    ssize_t received = recvmsg(connection->handle, &message, MSG_DONTWAIT);
    int reason;
    if (received > 0) {
        struct read read = stamp_read(&message, now(CLOCK_MONOTONIC));
        shared.bytes += received;
        read.end = response->bytes += received;
        /* Two reads of one segment share a stamp, and converting it errs by a few 100 ns. */
        if (response->read_count) {
            double last_s = response->reads[response->read_count - 1].arrived_s;
            if (read.arrived_s < last_s) read.arrived_s = last_s;
        }
        response->reads[response->read_count++] = read;
        if ((reason = find_end(connection)) < 0) return 0;
    } else if (!received) {
        reason = CLOSED;
    } else {
        if (errno == EAGAIN || errno == EINTR) return 0;
        reason = -errno;
    }
    response->reason = reason;
    if (reason == ENDED && connection->before_bytes) send_prepared(connection, response);
    connection->before_bytes = 0;
    if (response->next_number >= 0) {
        connection->response = new_response(connection);
        connection->position = 0;
    } else {
        connection->response = NULL;
        unwatch_connection(connection);
    }
    queue_response(connection, response);
    return 1;
}

static void note_stall(double last_s, double now_s) {
    if (now_s - last_s <= TICK_S + STALL_S || stall_count == MAX_STALLS) return;
    stalls[stall_count].start_s = last_s;
    stalls[stall_count++].end_s = now_s;
}

static void *run_thread(void *nothing) {
    struct epoll_event ready[64];
    uint64_t expirations;
    (void)nothing;
    shared.thread_id = gettid();
    int spin = 0; /* whether a request is due soon */
    for (double last_s = now(CLOCK_MONOTONIC);;) {
        int count = epoll_wait(poll_handle, ready, 64, spin ? 0 : -1), notify = 0;
        double now_s = now(CLOCK_MONOTONIC);
        pthread_mutex_lock(&lock);
        note_stall(last_s, now_s);
        last_s = now_s;
        for (int i = 0; i < count; i++) {
            struct connection *connection = ready[i].data.ptr;
            notify |= send_due();
            if (connection) {
                if (connection->watched) notify |= read_connection(connection);
            } else if (read(tick_handle, &expirations, sizeof expirations) > 0) {
                notify |= schedule_fetched < schedule_handled;
            } else if (read(schedule_handle, &expirations, sizeof expirations) < 0) {
                continue; /* the other timer's event has already read it */
            }
        }
        notify |= send_due();
        spin = is_due_soon();
        pthread_mutex_unlock(&lock);
        if (notify) eventfd_write(notify_handle, 1);
    }
    return NULL;
}

/* ---- What Python calls ----------------------------------------------------------------------- */

/* Starts the thread. Returns a descriptor that becomes readable when reader_next_outcome or
   reader_next_response has something to return, or minus errno. */
int reader_start(void) {
    pthread_t thread;
    sigset_t all, before;
    if ((poll_handle = epoll_create1(EPOLL_CLOEXEC)) < 0
        || (notify_handle = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) < 0)
        return -errno;
    /* With a timeout of epoll_wait instead, the kernel would set up a timer for each call. */
    struct timespec tick = {.tv_nsec = TICK_S * 1e9};
    struct epoll_event timer = {.events = EPOLLIN};
    if ((tick_handle = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)) < 0
        || timerfd_settime(tick_handle, 0, &(struct itimerspec){tick, tick}, NULL)
        || epoll_ctl(poll_handle, EPOLL_CTL_ADD, tick_handle, &timer)
        || (schedule_handle = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)) < 0
        || epoll_ctl(poll_handle, EPOLL_CTL_ADD, schedule_handle, &timer))
        return -errno;
    sigfillset(&all); /* Python's main thread handles signals. */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failed = pthread_create(&thread, NULL, run_thread, NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (failed) return -failed;
    pthread_detach(thread);
    return notify_handle;
}

struct shared *reader_shared(void) { return &shared; }

/* Returns the number of a request that Python sends itself. */
int64_t reader_next_number(void) {
    pthread_mutex_lock(&lock);
    int64_t number = shared.sent++;
    pthread_mutex_unlock(&lock);
    return number;
}

/* Starts to read a connection on which a response is about to start. `id` names it in responses.
   Returns NULL if the kernel refuses. */
struct connection *reader_watch(int handle, int64_t id) {
    pthread_mutex_lock(&lock);
    struct connection *connection = new_connection(handle, id);
    if (watch_connection(connection)) {
        free_response(connection->response);
        connection->response = NULL;
        release_connection(connection);
        connection = NULL;
    }
    pthread_mutex_unlock(&lock);
    return connection;
}

/* Prepares a request to send once, when the plain response ends. Without a prepared request the
   connection is no longer read from then on. */
void reader_prepare(struct connection *connection, const char *before, int64_t before_bytes,
                    const char *after, int64_t after_bytes) {
    pthread_mutex_lock(&lock);
    connection->before_bytes = 0;
    if (connection->before_room < before_bytes + after_bytes) {
        free(connection->before);
        connection->before_room = 2 * (before_bytes + after_bytes);
        if (!(connection->before = malloc(connection->before_room))) abort();
    }
    if (connection->watched) {
        memcpy(connection->before, before, before_bytes);
        connection->after = memcpy(connection->before + before_bytes, after, after_bytes);
        connection->before_bytes = before_bytes, connection->after_bytes = after_bytes;
    }
    pthread_mutex_unlock(&lock);
}

/* Removes and returns the oldest queued response: of `connection`, or of all if that is NULL. */
static struct response *dequeue_response(struct connection *connection) {
    struct response **at = &first_response, *response;
    if (connection && !connection->unreported) return NULL;
    while (connection && (*at)->from != connection) at = &(*at)->next;
    if (!(response = *at)) return NULL;
    if (!(*at = response->next)) last_response = at;
    response->from->unreported--;
    return response;
}

/* Returns the next response, to be freed with reader_free, or NULL. */
struct response *reader_next_response(void) {
    pthread_mutex_lock(&lock);
    struct response *response = dequeue_response(NULL);
    if (!response && schedule_fetched == schedule_handled) { /* otherwise it stays readable */
        eventfd_t count;
        eventfd_read(notify_handle, &count);
    }
    pthread_mutex_unlock(&lock);
    return remove_chunks(response);
}

/* Stops reading a connection. Each call returns one response that Python has not fetched, to be
   freed with reader_free; the last one may be incomplete (MORE). After NULL the connection is
   gone. */
struct response *reader_stop(struct connection *connection) {
    pthread_mutex_lock(&lock);
    unwatch_connection(connection);
    if (connection->idle) {
        struct connection **at = &idle;
        while (*at != connection) at = &(*at)->next;
        *at = connection->next;
        connection->idle = 0;
    }
    connection->before_bytes = 0;
    struct response *response = dequeue_response(connection);
    if (!response && (response = connection->response)) connection->response = NULL;
    if (!response) release_connection(connection);
    pthread_mutex_unlock(&lock);
    return remove_chunks(response);
}

void reader_free(struct response *response) {
    pthread_mutex_lock(&lock);
    free_response(response);
    pthread_mutex_unlock(&lock);
}

/* Fetches one stall, a period in which nothing was read. Returns whether there was one. */
int reader_pop_stall(double *start_s, double *end_s) {
    pthread_mutex_lock(&lock);
    int found = stall_count > 0;
    if (found) {
        *start_s = stalls[--stall_count].start_s;
        *end_s = stalls[stall_count].end_s;
    }
    pthread_mutex_unlock(&lock);
    return found;
}

/* Schedules a request. `at_s` must not decrease between calls. Returns whether there was room. */
int reader_schedule(double at_s, const char *before, int64_t before_bytes, const char *after,
                    int64_t after_bytes) {
    pthread_mutex_lock(&lock);
    int room = schedule_end - schedule_fetched < MAX_SCHEDULED;
    if (room) {
        schedule[schedule_end++ % MAX_SCHEDULED] =
            (struct scheduled){.at_s = at_s, .before = before, .after = after,
                               .before_bytes = before_bytes, .after_bytes = after_bytes};
        if (schedule_handled == schedule_end - 1) set_schedule_timer();
    }
    pthread_mutex_unlock(&lock);
    return room;
}

/* Returns the next outcome of a scheduled request, or NULL. It is valid until the next call of
   reader_schedule. */
struct scheduled *reader_next_outcome(void) {
    pthread_mutex_lock(&lock);
    struct scheduled *outcome = NULL;
    if (schedule_fetched < schedule_handled)
        outcome = &schedule[schedule_fetched++ % MAX_SCHEDULED];
    pthread_mutex_unlock(&lock);
    return outcome;
}

/* Drops every scheduled request that is not sent yet, and every outcome that is not fetched yet. */
void reader_cancel_schedule(void) {
    pthread_mutex_lock(&lock);
    schedule_fetched = schedule_end = schedule_handled;
    set_schedule_timer();
    pthread_mutex_unlock(&lock);
}

/* Lends an idle connection: the reader may send a scheduled request on it and read the response. */
struct connection *reader_return_idle(int handle, int64_t id) {
    pthread_mutex_lock(&lock);
    struct connection *connection = new_connection(handle, id);
    connection->idle = 1;
    connection->next = idle;
    idle = connection;
    pthread_mutex_unlock(&lock);
    return connection;
}

/* Takes back the idle connection that was used last. Returns its `id`, or 0 if none is idle. */
int64_t reader_acquire_idle(void) {
    pthread_mutex_lock(&lock);
    struct connection *connection = idle;
    int64_t id = 0;
    if (connection) {
        id = connection->id;
        idle = connection->next;
        connection->idle = 0;
        release_connection(connection);
    }
    pthread_mutex_unlock(&lock);
    return id;
}
