// Java's own clients: java Http.java URL. Prints statuses and a word of each reply.
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse.BodyHandlers;
import java.net.http.WebSocket;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionStage;
import java.util.concurrent.TimeUnit;

public class Http {
    static HttpRequest.Builder post(String url, String body) {
        return HttpRequest.newBuilder(URI.create(url)).POST(HttpRequest.BodyPublishers.ofString(body));
    }

    static String word(String reply, String word) {
        return reply.contains("\"" + word + "\"") ? word : reply;
    }

    public static void main(String[] arguments) throws Exception {
        String url = arguments[0];
        // The first is the default: HTTP/2, which over plain text is an offer of h2c beside the body.
        for (var version : new HttpClient.Version[] {HttpClient.Version.HTTP_2, HttpClient.Version.HTTP_1_1}) {
            var client = HttpClient.newBuilder().version(version).build();
            var request = post(url + "/v1/models/tiny:predict", "{\"sequences\": [{\"text\": \"Hello\"}]}").build();
            var reply = client.send(request, BodyHandlers.ofString());
            System.out.println(reply.statusCode() + " " + word(reply.body(), "predictions"));
        }
        var client = HttpClient.newHttpClient();
        var generate = post(url + "/v1/models/tiny:generate", "{\"text\": \"A\", \"max_tokens\": 3}")
                .header("Accept", "text/event-stream").build();
        var lines = client.send(generate, BodyHandlers.ofLines()).body().filter(line -> line.startsWith("event: "));
        System.out.println(lines.reduce((former, last) -> last).get().substring(7));

        var opened = client.send(post(url + "/v1/sessions", "{\"model\": \"tiny\", \"id\": \"java\"}").build(), BodyHandlers.ofString());
        if (opened.statusCode() != 201) throw new IllegalStateException(opened.body());
        var answer = new CompletableFuture<String>();
        var listener = new WebSocket.Listener() {
            public CompletionStage<?> onText(WebSocket socket, CharSequence data, boolean isLast) {
                answer.complete(data.toString());
                return null;
            }

            public void onError(WebSocket socket, Throwable error) {
                answer.completeExceptionally(error);
            }
        };
        var socket = client.newWebSocketBuilder()
                .buildAsync(URI.create(url.replace("http", "ws") + "/v1/sessions/java/stream"), listener).get(30, TimeUnit.SECONDS);
        socket.sendText("{\"text\": \"H\"}", true).get(30, TimeUnit.SECONDS);
        System.out.println(word(answer.get(30, TimeUnit.SECONDS), "position"));
        socket.abort();
    }
}
