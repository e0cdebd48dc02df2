/* Part of streams.c: requests of an open loop, which are sent when they are due, on connections that are idle then. Whatever Python is doing
   meanwhile, and the answers that come, do not keep them waiting. */
#define MOST_DUE 1024
#define AWAKE_S 50e-6 /* before a request is due: about what waking up takes */

/* A request that is sent when it is due, in the order in which they were given: on `stream`, as `number`. If none is idle then, both are -1,
   and it is Python's to send it. Its text is Python's, and stays until that is told. */
struct due {
    double at_s, sent_s;
    const char *before, *after; /* around its number */
    int64_t before_bytes, after_bytes, stream, number, unsent;
};

static struct due due[MOST_DUE]; /* a ring: from due_told on Python has not been told of them, from due_sent on they are not sent */
static int64_t due_told, due_sent, due_end;
static int due_handle;

static int due_soon(void) { return due_sent < due_end && due[due_sent % MOST_DUE].at_s - AWAKE_S <= now(CLOCK_MONOTONIC); }

/* A little before the next request is due. */
static void set_alarm(void) {
    double at_s = due_sent < due_end ? due[due_sent % MOST_DUE].at_s - AWAKE_S : 0; /* 0: never */
    if (at_s < 0) at_s = 1e-9;
    struct itimerspec when = {.it_value = {at_s, (at_s - (int64_t)at_s) * 1e9}};
    timerfd_settime(due_handle, TFD_TIMER_ABSTIME, &when, NULL);
}

/* Sends what is due. Whether Python is to be told at once, because there was no connection or it is not read; else there is time until it
   is told of anything. */
static int send_due(void) {
    int sent = 0, tell = 0;
    for (struct due *next; due_sent < due_end && (next = &due[due_sent % MOST_DUE])->at_s <= now(CLOCK_MONOTONIC); due_sent++, sent = 1) {
        struct stream *stream = idle;
        int failed;
        next->stream = next->number = -1;
        if (!stream) {
            tell = 1;
            continue;
        }
        idle = stream->next;
        stream->idle = 0;
        next->stream = stream->id;
        next->sent_s = now(CLOCK_MONOTONIC);
        next->unsent = send_around(stream->handle, next->before, next->before_bytes, next->after, next->after_bytes, &next->number);
        if ((failed = begin(stream))) {
            stream->answer->why = failed;
            tell_of(stream, stream->answer);
            stream->answer = NULL;
            tell = 1;
        }
    }
    if (sent && !due_soon()) set_alarm();
    return tell;
}

/* A request to be sent then, not before those that were given earlier. Whether there was room for it. */
int streams_schedule(double at_s, const char *before, int64_t before_bytes, const char *after, int64_t after_bytes) {
    pthread_mutex_lock(&lock);
    int room = due_end - due_told < MOST_DUE;
    if (room) {
        due[due_end++ % MOST_DUE] = (struct due){.at_s = at_s, .before = before, .after = after, .before_bytes = before_bytes,
                                                 .after_bytes = after_bytes};
        if (due_sent == due_end - 1) set_alarm();
    }
    pthread_mutex_unlock(&lock);
    return room;
}

/* The next that Python has not been told of, or null. To be looked at before another is scheduled. */
struct due *streams_sent(void) {
    pthread_mutex_lock(&lock);
    struct due *found = due_told < due_sent ? &due[due_told++ % MOST_DUE] : NULL;
    pthread_mutex_unlock(&lock);
    return found;
}

/* What is not yet due is not sent, and nobody is told of what was. */
void streams_cancel(void) {
    pthread_mutex_lock(&lock);
    due_told = due_end = due_sent;
    set_alarm();
    pthread_mutex_unlock(&lock);
}

/* A request that is due may be sent on this connection, and its answer is read then. */
struct stream *streams_offer(int handle, int64_t id) {
    pthread_mutex_lock(&lock);
    struct stream *stream = new_stream(handle, id);
    stream->idle = 1;
    stream->next = idle;
    idle = stream;
    pthread_mutex_unlock(&lock);
    return stream;
}

/* It is no longer offered. The `id` of the one that was used last, whose stream is gone; 0: none is idle. */
int64_t streams_take_idle(void) {
    pthread_mutex_lock(&lock);
    struct stream *stream = idle;
    int64_t id = 0;
    if (stream) {
        id = stream->id;
        idle = stream->next;
        stream->idle = 0;
        release(stream);
    }
    pthread_mutex_unlock(&lock);
    return id;
}
