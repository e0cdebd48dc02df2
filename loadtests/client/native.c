/* Reads the streams of a load worker, on a thread of its own that waits for nobody: neither for the interpreter nor for its lock.

   It stamps each read, keeps the bytes as they came, and sees where a plain answer in chunks ends. Then the next request on that connection,
   if one lies ready, is sent at once, and Python is told. All else is Python's: what the answer says, and any other sort of answer, which
   is handed over as soon as that is known. It also sends requests at given times, on connections that are idle then.
   loadtests/client/reader.py compiles this, and is its only user.

   Times are CLOCK_MONOTONIC, in seconds. All functions are to be called from one thread. */
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

#define ROOM 16384             /* at least so much for a read */
#define LONGEST (1 << 20)      /* of an answer that is read here, bytes */
#define MOST_KEPT (1 << 18)    /* room of an answer that is used again, bytes */
#define MAX_STAMP_AGE_S 10.0
#define TICK_MS 5
#define STALL_S 0.010          /* tokens of one stream that come meanwhile may be merged */
#define MOST_STALLS 1024
#define BETWEEN_CLOCKS_S 20e-6 /* reading one after the other takes a tenth of a microsecond */

enum { ENDED = 0, MORE = 1, CLOSED = 2 }; /* or minus errno: why Python is told */

struct read { double at, lag; int64_t end; }; /* when there were `end` bytes */

/* What came of an answer, and what was sent when it had ended. If it has ENDED, whoever is told finds `head` bytes of head in `data` and
   behind them `bytes` of body, chunks removed, and `end` counts those; else all bytes as they came. */
struct answer {
    int64_t stream, why, bytes, head, reads;
    int64_t number;                                  /* of the request that was sent then; -1: none */
    double sent_s;
    int64_t unsent; /* bytes of it that could not be sent */
    char *data;
    struct read *read;
    struct stream *from;
    struct answer *next;
    int64_t room, read_room;
};

/* One connection. Never freed but used again: an event of epoll's may still name it. */
struct stream {
    int handle, watched, idle, untold; /* answers that Python has not been told of */
    int64_t id, position; /* where in the answer the next chunk begins; 0: still in the head */
    struct answer *answer;
    char *before, *after; /* of a request that lies ready, around its number */
    int64_t before_bytes, after_bytes, before_room; /* no bytes before: none does */
    struct stream *next;
};

struct shared { int64_t sent, bytes; double until_s; int64_t thread; }; /* requests; bytes received; no request is sent later; its id */

static struct shared shared;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct { double start_s, end_s; } stalls[MOST_STALLS];
static int stalls_found;
static int poll_handle, told_handle, tick_handle;
static struct stream *unused, *idle; /* the idle one that was used last is the first */
static struct answer *spare; /* kept: what one thread allocates and another frees again and again leaves ever more holes */
static struct answer *first, **last = &first;

static double now(clockid_t which) {
    struct timespec t;
    clock_gettime(which, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

/* The end of the line of a chunk's size that begins at `position`, or 0: it is not whole, or -1: it is not plain. */
static int64_t chunk_size(const char *data, int64_t bytes, int64_t position, int64_t *size) {
    int64_t value = 0, at = position;
    for (; at < bytes && at < position + 7; at++) {
        char c = data[at];
        int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
        if (digit < 0) break;
        value = value * 16 + digit;
    }
    if (at == bytes) return 0;
    if (at == position || data[at] != '\r') return -1;
    if (at + 1 == bytes) return 0;
    *size = value;
    return data[at + 1] == '\n' ? at + 2 : -1;
}

/* ENDED, MORE (Python is to read on), or -1: there is more to come. */
static int look(struct stream *stream) {
    struct answer *answer = stream->answer;
    char *data = answer->data;
    int64_t bytes = answer->bytes;
    if (!stream->position) {
        char *end = memmem(data, bytes, "\r\n\r\n", 4);
        if (!end) return bytes > ROOM ? MORE : -1;
        char kept = end[2];
        end[2] = 0;
        /* and one whose head nobody will object to: the next request is sent before Python has read it */
        int plain = !strncmp(data, "HTTP/1.1 200 ", 13) && strlen(data) == (size_t)(end + 2 - data)
                    && strcasestr(data, "\r\ntransfer-encoding: chunked\r\n")
                    && !strcasestr(data, "content-encoding") && !strcasestr(data, "content-length")
                    && (!strcasestr(data, "\r\nconnection:") || strcasestr(data, "\r\nconnection: keep-alive\r\n"));
        end[2] = kept;
        if (!plain) return MORE;
        stream->position = answer->head = end + 4 - data;
    }
    while (stream->position < bytes) {
        int64_t size = 0, start = chunk_size(data, bytes, stream->position, &size);
        if (start < 0) return MORE;
        if (!start || start + size + 2 > bytes) break;
        if (data[start + size] != '\r' || data[start + size + 1] != '\n') return MORE; /* trailers, too */
        stream->position = start + size + 2;
        if (!size) return ENDED;
    }
    return bytes > LONGEST ? MORE : -1;
}

/* Removes what is not of the body behind the head, and forgets reads of the head alone. Not while it is read: streams wait then. */
static struct answer *stripped(struct answer *answer) {
    if (!answer || answer->why != ENDED) return answer;
    struct read *read = answer->read, *last_read = read + answer->reads, *kept = read;
    char *body = answer->data + answer->head;
    int64_t length = 0, size = 1;
    while (read < last_read && read->end <= answer->head) read++;
    for (int64_t position = answer->head; size; position += size + 2) {
        position = chunk_size(answer->data, answer->bytes, position, &size);
        for (; read < last_read && read->end <= position + size; *kept++ = *read++)
            read->end = length + (read->end > position ? read->end - position : 0);
        memmove(body + length, answer->data + position, size);
        length += size;
    }
    for (; read < last_read; *kept++ = *read++) read->end = length;
    answer->reads = kept - answer->read;
    answer->bytes = length;
    return answer;
}

static struct answer *new_answer(struct stream *stream) {
    struct answer *answer = spare;
    if (answer) {
        spare = answer->next;
    } else {
        if (!(answer = malloc(sizeof *answer))) abort();
        answer->room = 2 * ROOM, answer->read_room = 160;
        answer->data = malloc(answer->room);
        answer->read = malloc(answer->read_room * sizeof *answer->read);
        if (!answer->data || !answer->read) abort();
    }
    *answer = (struct answer){.stream = stream->id, .from = stream, .why = MORE, .number = -1, .room = answer->room,
                              .read_room = answer->read_room, .data = answer->data, .read = answer->read};
    return answer;
}

static void free_answer(struct answer *answer) {
    if (answer->room <= MOST_KEPT) {
        answer->next = spare;
        spare = answer;
        return;
    }
    free(answer->data);
    free(answer->read);
    free(answer);
}

/* How many bytes could not be sent. `number`: becomes the request's. */
static int64_t send_around(int handle, const char *before, int64_t before_bytes, const char *after, int64_t after_bytes, int64_t *number) {
    char text[24];
    int digits = sprintf(text, "%lld", (long long)(*number = shared.sent++));
    struct iovec parts[3] = {{(char *)before, before_bytes}, {text, digits}, {(char *)after, after_bytes}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 3};
    ssize_t gone = sendmsg(handle, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    return before_bytes + digits + after_bytes - (gone < 0 ? 0 : gone);
}

static void send_next(struct stream *stream, struct answer *answer) {
    answer->sent_s = now(CLOCK_MONOTONIC);
    if (answer->sent_s > shared.until_s) return;
    answer->unsent = send_around(stream->handle, stream->before, stream->before_bytes, stream->after, stream->after_bytes, &answer->number);
}

static void unwatch(struct stream *stream) {
    if (stream->watched) epoll_ctl(poll_handle, EPOLL_CTL_DEL, stream->handle, NULL);
    stream->watched = 0;
}

static void tell_of(struct stream *stream, struct answer *answer) {
    *last = answer;
    last = &answer->next;
    stream->untold++;
}

/* Its answer is read from now on; minus errno if that is not possible. */
static int begin(struct stream *stream) {
    struct epoll_event wanted = {.events = EPOLLIN, .data.ptr = stream};
    stream->answer = new_answer(stream);
    stream->position = 0;
    stream->watched = !epoll_ctl(poll_handle, EPOLL_CTL_ADD, stream->handle, &wanted);
    return stream->watched ? 0 : -errno;
}

static void release(struct stream *stream) {
    stream->next = unused;
    unused = stream;
}

static struct stream *new_stream(int handle, int64_t id) {
    struct stream *stream = unused;
    if (stream) unused = stream->next;
    else if (!(stream = calloc(1, sizeof *stream))) abort();
    *stream = (struct stream){.handle = handle, .id = id, .before = stream->before, .before_room = stream->before_room};
    return stream;
}

#include "due.c"

/* Whether Python is to be told. */
static int take(struct stream *stream) {
    struct answer *answer = stream->answer;
    if (answer->room - answer->bytes < ROOM) {
        answer->data = realloc(answer->data, answer->room *= 2);
        if (!answer->data) abort();
    }
    if (answer->reads == answer->read_room) {
        answer->read = realloc(answer->read, (answer->read_room *= 2) * sizeof *answer->read);
        if (!answer->read) abort();
    }
    char control[64];
    struct iovec part = {answer->data + answer->bytes, ROOM};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    ssize_t got = recvmsg(stream->handle, &message, MSG_DONTWAIT);
    double at = now(CLOCK_MONOTONIC), lag = 0;
    int why;
    if (got > 0) {
        struct cmsghdr *stamp = CMSG_FIRSTHDR(&message);
        if (stamp) {
            struct timespec arrived, wall;
            clock_gettime(CLOCK_REALTIME, &wall);
            while (now(CLOCK_MONOTONIC) - at > BETWEEN_CLOCKS_S) { /* the core was lost between the two clocks: together again */
                at = now(CLOCK_MONOTONIC);
                clock_gettime(CLOCK_REALTIME, &wall);
            }
            memcpy(&arrived, CMSG_DATA(stamp), sizeof arrived);
            double age = (wall.tv_sec - arrived.tv_sec) + (wall.tv_nsec - arrived.tv_nsec) * 1e-9;
            if (age >= 0 && age < MAX_STAMP_AGE_S) at -= age, lag = age;
        }
        answer->bytes += got;
        shared.bytes += got;
        /* two reads of one segment have one stamp, and its conversion to our clock an error of some hundred ns */
        if (answer->reads && at < answer->read[answer->reads - 1].at) at = answer->read[answer->reads - 1].at;
        answer->read[answer->reads++] = (struct read){at, lag, answer->bytes};
        if ((why = look(stream)) < 0) return 0;
    } else if (!got) {
        why = CLOSED;
    } else {
        if (errno == EAGAIN || errno == EINTR) return 0;
        why = -errno;
    }
    answer->why = why;
    if (why == ENDED && stream->before_bytes) send_next(stream, answer);
    stream->before_bytes = 0;
    if (answer->number >= 0) {
        stream->answer = new_answer(stream);
        stream->position = 0;
    } else {
        stream->answer = NULL;
        unwatch(stream);
    }
    tell_of(stream, answer);
    return 1;
}

static void *work(void *nothing) {
    struct epoll_event ready[64];
    uint64_t ticks;
    (void)nothing;
    shared.thread = gettid();
    int awake = 0; /* because a request is due soon */
    for (double last_s = now(CLOCK_MONOTONIC);;) {
        int found = epoll_wait(poll_handle, ready, 64, awake ? 0 : -1), tell = 0;
        double now_s = now(CLOCK_MONOTONIC);
        pthread_mutex_lock(&lock);
        if (now_s - last_s > TICK_MS * 1e-3 + STALL_S && stalls_found < MOST_STALLS) {
            stalls[stalls_found].start_s = last_s;
            stalls[stalls_found++].end_s = now_s;
        }
        last_s = now_s;
        for (int i = 0; i < found; i++) {
            struct stream *stream = ready[i].data.ptr;
            tell |= send_due();
            if (stream) {
                if (stream->watched) tell |= take(stream);
            } else if (read(tick_handle, &ticks, sizeof ticks) > 0) {
                tell |= due_told < due_sent;
            } else if (read(due_handle, &ticks, sizeof ticks) < 0) {
                continue; /* it was read for another event */
            }
        }
        tell |= send_due();
        awake = due_soon();
        pthread_mutex_unlock(&lock);
        if (tell) eventfd_write(told_handle, 1);
    }
    return NULL;
}

void streams_free(struct answer *answer) {
    pthread_mutex_lock(&lock);
    free_answer(answer);
    pthread_mutex_unlock(&lock);
}

/* A descriptor that becomes readable when `streams_sent` or `streams_take` has something; or minus errno. */
int streams_begin(void) {
    pthread_t thread;
    sigset_t all, before;
    if ((poll_handle = epoll_create1(EPOLL_CLOEXEC)) < 0 || (told_handle = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) < 0) return -errno;
    /* not a time limit of epoll's, for which the kernel sets a timer anew each time */
    struct timespec tick = {.tv_nsec = TICK_MS * 1000000};
    struct epoll_event ticking = {.events = EPOLLIN};
    if ((tick_handle = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)) < 0
        || timerfd_settime(tick_handle, 0, &(struct itimerspec){tick, tick}, NULL)
        || epoll_ctl(poll_handle, EPOLL_CTL_ADD, tick_handle, &ticking)
        || (due_handle = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)) < 0
        || epoll_ctl(poll_handle, EPOLL_CTL_ADD, due_handle, &ticking)) return -errno;
    sigfillset(&all); /* signals are Python's */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failed = pthread_create(&thread, NULL, work, NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (failed) return -failed;
    pthread_detach(thread);
    return told_handle;
}

struct shared *streams_shared(void) { return &shared; }

/* Of a request that Python sends. */
int64_t streams_number(void) {
    pthread_mutex_lock(&lock);
    int64_t number = shared.sent++;
    pthread_mutex_unlock(&lock);
    return number;
}

/* From now on this connection is read, whose answer begins. `id`: what answers call it. Null: it cannot be. */
struct stream *streams_watch(int handle, int64_t id) {
    pthread_mutex_lock(&lock);
    struct stream *stream = new_stream(handle, id);
    if (begin(stream)) {
        free_answer(stream->answer);
        stream->answer = NULL;
        release(stream);
        stream = NULL;
    }
    pthread_mutex_unlock(&lock);
    return stream;
}

/* The request that is sent, once, when a plain answer ends. Without one the connection is no longer read then. */
void streams_prepare(struct stream *stream, const char *before, int64_t before_bytes, const char *after, int64_t after_bytes) {
    pthread_mutex_lock(&lock);
    stream->before_bytes = 0;
    if (stream->before_room < before_bytes + after_bytes) {
        free(stream->before);
        stream->before_room = 2 * (before_bytes + after_bytes);
        if (!(stream->before = malloc(stream->before_room))) abort();
    }
    if (stream->watched) {
        memcpy(stream->before, before, before_bytes);
        stream->after = memcpy(stream->before + before_bytes, after, after_bytes);
        stream->before_bytes = before_bytes, stream->after_bytes = after_bytes;
    }
    pthread_mutex_unlock(&lock);
}

/* The first of those that Python has not been told of, of that stream or, with null, of all; null: none. */
static struct answer *next_untold(struct stream *stream) {
    struct answer **at = &first, *answer;
    if (stream && !stream->untold) return NULL;
    while (stream && (*at)->from != stream) at = &(*at)->next;
    if (!(answer = *at)) return NULL;
    if (!(*at = answer->next)) last = at;
    answer->from->untold--;
    return answer;
}

/* It is no longer read. What has come of it and nobody was told of, one answer a call, the last one MORE and not whole; each is to be
   freed. Null: no more, and the stream is gone. */
struct answer *streams_leave(struct stream *stream) {
    pthread_mutex_lock(&lock);
    unwatch(stream);
    if (stream->idle) {
        struct stream **at = &idle;
        while (*at != stream) at = &(*at)->next;
        *at = stream->next;
        stream->idle = 0;
    }
    stream->before_bytes = 0;
    struct answer *answer = next_untold(stream);
    if (!answer && (answer = stream->answer)) stream->answer = NULL;
    if (!answer) release(stream);
    pthread_mutex_unlock(&lock);
    return stripped(answer);
}

/* The next that Python is told of; null: none. It is to be freed. */
struct answer *streams_take(void) {
    pthread_mutex_lock(&lock);
    struct answer *answer = next_untold(NULL);
    if (!answer && due_told == due_sent) { /* else it stays readable */
        eventfd_t count;
        eventfd_read(told_handle, &count);
    }
    pthread_mutex_unlock(&lock);
    return stripped(answer);
}

/* Whether there is one that has not been told: from when to when nothing was read, for whatever reason. */
int streams_stall(double *start_s, double *end_s) {
    pthread_mutex_lock(&lock);
    int found = stalls_found > 0;
    if (found) *start_s = stalls[--stalls_found].start_s, *end_s = stalls[stalls_found].end_s;
    pthread_mutex_unlock(&lock);
    return found;
}
