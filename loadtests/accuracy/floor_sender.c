/* The floor for sending: how punctually one core can send requests at all. It sends prepared
   requests when they are due, does nothing else, and spins while it waits. `nox -s instrument`
   compiles it and sends the same arrivals with it as with the load generator.

       floor_sender PORT CONNECTIONS < TIMES          prints: the time when it sent each request

   TIMES has one line per request, in order: seconds since the start. The connections are used
   alternately. A response is discarded when its connection is used again, if there is time. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#define MAX_REQUESTS 1000000
#define TIME_TO_READ_S 50e-6

static double due[MAX_REQUESTS], sent[MAX_REQUESTS];
static char discarded[65536];

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

int main(int count, char **arguments) {
    if (count != 3) return 2;
    int connections = atoi(arguments[2]), requests = 0, one = 1;
    while (requests < MAX_REQUESTS && scanf("%lf", &due[requests]) == 1) requests++;
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons(atoi(arguments[1])),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int *handles = malloc(connections * sizeof *handles);
    for (int i = 0; i < connections; i++) {
        handles[i] = socket(AF_INET, SOCK_STREAM, 0);
        if (connect(handles[i], (struct sockaddr *)&address, sizeof address)) return 1;
        setsockopt(handles[i], IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    }
    const char *body = "{\"model\": \"sender\", \"prompt\": \"baba\", \"max_tokens\": 8,"
                       " \"stream\": true, \"ignore_eos\": true}";
    char text[600];
    int size = sprintf(text,
                       "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
                       "Content-Type: application/json\r\nX-Request-Id: 00000000-0000-4000-8000-000000000000\r\n"
                       "Content-Length: %d\r\n\r\n%s",
                       (int)strlen(body), body);
    double start = now() + 0.1;
    for (int i = 0; i < requests; i++) {
        int handle = handles[i % connections];
        if (start + due[i] - now() > TIME_TO_READ_S)
            recv(handle, discarded, sizeof discarded, MSG_DONTWAIT);
        while ((sent[i] = now() - start) < due[i]);
        if (send(handle, text, size, 0) != size) return 1;
    }
    for (int i = 0; i < requests; i++) printf("%.9f\n", sent[i]);
    return 0;
}
